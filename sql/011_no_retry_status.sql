-- The statuses after which a delivery to this webhook is dead at once, such as `400,404-408,5xx`; `none`:
-- none but 410. NULL: as NO_RETRY_STATUS says. Without a default, so that adding the column to a full
-- table rewrites nothing.
ALTER TABLE webhooks ADD COLUMN IF NOT EXISTS no_retry_status TEXT;
