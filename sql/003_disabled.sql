-- A disabled webhook stays registered, but gets nothing; NULL: it is enabled. There is no default, so that
-- adding the columns does not rewrite a full table.
ALTER TABLE webhooks ADD COLUMN IF NOT EXISTS disabled_at TIMESTAMPTZ;
ALTER TABLE webhooks ADD COLUMN IF NOT EXISTS disabled_reason TEXT;
