-- An event may be of an account, and `account` was a label of webhooks until now: from here on it decides.
-- A webhook that has one gets the events of that account only, one without (NULL) gets every event. An
-- account that no event can be of (empty, over 255 bytes) makes its webhook unusable; as with the other
-- settings there is no CHECK, so that nothing is read or refused here.
COMMENT ON COLUMN webhooks.account IS
    'whose events it gets, and nobody else''s; NULL: every event';
-- However many accounts have webhooks for an event, these two find those without one, and those of one
-- account. Its name is cut because an index can't hold any text; no event's is as long.
CREATE INDEX IF NOT EXISTS webhooks_everybodys_idx ON webhooks USING GIN (events) WHERE account IS NULL;
CREATE INDEX IF NOT EXISTS webhooks_account_idx ON webhooks (left(account::text, 256));
-- Whose the event is; NULL: nobody's, or it was logged before there were accounts.
ALTER TABLE delivery_attempts ADD COLUMN IF NOT EXISTS account TEXT;
