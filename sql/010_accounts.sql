-- An event may belong to an account. Until now, a webhook's `account` was only a label. From now on, a
-- webhook with an account gets only the events of that account, and one without (NULL) gets every event. An
-- account that no event can have (empty, or over 255 bytes) makes its webhook unusable. As for the other
-- settings there is no CHECK, so that nothing is read or refused here.
COMMENT ON COLUMN webhooks.account IS
    'whose events it gets, and nobody else''s; NULL: every event';
-- However many accounts have webhooks for an event, these indexes find the webhooks without an account, and
-- those of one account. The account is cut, because an index can't hold text of any length. No event's
-- account is that long.
CREATE INDEX IF NOT EXISTS webhooks_everybodys_idx ON webhooks USING GIN (events) WHERE account IS NULL;
CREATE INDEX IF NOT EXISTS webhooks_account_idx ON webhooks (left(account::text, 256));
-- The event's account; NULL: it has none, or it was logged before accounts existed.
ALTER TABLE delivery_attempts ADD COLUMN IF NOT EXISTS account TEXT;
