-- The answer of a receiver that did not accept the event: its status line, and the beginning of its body
-- (DELIVERY_LOG_BODY). NULL: there was no such answer, or it is not kept.
ALTER TABLE delivery_attempts ADD COLUMN IF NOT EXISTS status_line TEXT;
ALTER TABLE delivery_attempts ADD COLUMN IF NOT EXISTS answer_body TEXT;
-- For `why EVENT`, by the whole id or its beginning, with any collation of the database.
CREATE INDEX IF NOT EXISTS delivery_attempts_event_id_idx ON delivery_attempts (event_id text_pattern_ops);
DROP INDEX IF EXISTS delivery_attempts_event_idx;
-- For `why --webhook` and `tail --webhook`.
CREATE INDEX IF NOT EXISTS delivery_attempts_webhook_idx ON delivery_attempts (webhook_id, at);
