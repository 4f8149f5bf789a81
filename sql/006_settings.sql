-- Settings of a webhook; NULL: not set. src/manual/webhook-settings.md describes their values. There are no
-- defaults or checks, so that adding the columns neither rewrites nor reads a full table. An invalid value
-- affects only the deliveries of its webhook.
ALTER TABLE webhooks ADD COLUMN IF NOT EXISTS headers JSONB;
ALTER TABLE webhooks ADD COLUMN IF NOT EXISTS timeout_ms INTEGER;
ALTER TABLE webhooks ADD COLUMN IF NOT EXISTS max_in_flight INTEGER;
ALTER TABLE webhooks ADD COLUMN IF NOT EXISTS rate_per_second DOUBLE PRECISION;
ALTER TABLE webhooks ADD COLUMN IF NOT EXISTS description TEXT;
ALTER TABLE webhooks ADD COLUMN IF NOT EXISTS account TEXT;
