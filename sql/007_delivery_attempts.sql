-- The delivery log: what happened to which delivery, when. `id` is the order in which entries are
-- written, and not quite the one in which other sessions see them: `tx` tells them which they have
-- not seen yet. `webhook_id` is NULL where no webhook wanted the event. No foreign key: what was
-- sent to a webhook outlives it.
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
-- For what is older than DELIVERY_LOG_KEEP.
CREATE INDEX IF NOT EXISTS delivery_attempts_at_idx ON delivery_attempts (at);
