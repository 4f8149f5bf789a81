-- The statuses after which a delivery to this webhook is dead at once, such as `400,404-408,5xx`; `none`:
-- only 410. NULL: NO_RETRY_STATUS applies. There is no default, so that adding the column does not rewrite a
-- full table.
ALTER TABLE webhooks ADD COLUMN IF NOT EXISTS no_retry_status TEXT;
