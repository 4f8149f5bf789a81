-- The secret that signs the requests to a webhook; NULL: they are not signed. Until it expires, the previous
-- secret signs them too, so that a receiver has time to switch. There are no defaults, so that adding the
-- columns does not rewrite a full table.
ALTER TABLE webhooks ADD COLUMN IF NOT EXISTS secret TEXT;
ALTER TABLE webhooks ADD COLUMN IF NOT EXISTS previous_secret TEXT;
ALTER TABLE webhooks ADD COLUMN IF NOT EXISTS previous_secret_expires_at TIMESTAMPTZ;
