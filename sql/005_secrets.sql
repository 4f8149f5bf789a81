-- What the requests to a webhook are signed with; NULL: they are not signed. The previous secret
-- signs too until it expires, so that a receiver can change over. Without defaults, so that adding
-- the columns to a full table rewrites nothing.
ALTER TABLE webhooks ADD COLUMN IF NOT EXISTS secret TEXT;
ALTER TABLE webhooks ADD COLUMN IF NOT EXISTS previous_secret TEXT;
ALTER TABLE webhooks ADD COLUMN IF NOT EXISTS previous_secret_expires_at TIMESTAMPTZ;
