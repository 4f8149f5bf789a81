-- Settings of a webhook; NULL: as if there were none. src/manual/webhook-settings.md says what each may
-- hold. Without defaults and checks, so that adding the columns to a full table rewrites and reads
-- nothing; a value that can't be used costs the deliveries of its webhook only.
ALTER TABLE webhooks ADD COLUMN IF NOT EXISTS headers JSONB;
ALTER TABLE webhooks ADD COLUMN IF NOT EXISTS timeout_ms INTEGER;
ALTER TABLE webhooks ADD COLUMN IF NOT EXISTS max_in_flight INTEGER;
ALTER TABLE webhooks ADD COLUMN IF NOT EXISTS rate_per_second DOUBLE PRECISION;
ALTER TABLE webhooks ADD COLUMN IF NOT EXISTS description TEXT;
ALTER TABLE webhooks ADD COLUMN IF NOT EXISTS account TEXT;
