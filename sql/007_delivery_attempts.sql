-- The delivery log: what happened to each delivery, and when. `id` is the order in which entries are written.
-- Other sessions may see them in a different order; by `tx` they know which they have not seen yet.
-- `webhook_id` is NULL if no webhook wanted the event. There is no foreign key: entries outlive their
-- webhook.
CREATE TABLE IF NOT EXISTS delivery_attempts (
    id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tx XID8 NOT NULL DEFAULT pg_current_xact_id(),
    at TIMESTAMPTZ NOT NULL,
    event_id TEXT NOT NULL,
    event_type TEXT NOT NULL,
    webhook_id UUID,
    queue TEXT NOT NULL,
    outcome TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    status INTEGER,
    reason TEXT,
    detail TEXT NOT NULL,
    ms BIGINT,
    next_attempt_at TIMESTAMPTZ,
    dead TEXT
);
-- Finds the entries older than DELIVERY_LOG_KEEP.
CREATE INDEX IF NOT EXISTS delivery_attempts_at_idx ON delivery_attempts (at);
