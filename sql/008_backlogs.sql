-- A paused webhook gets nothing for now, and loses nothing; NULL: it is not paused. There is no default, so
-- that adding the column does not rewrite a full table.
ALTER TABLE webhooks ADD COLUMN IF NOT EXISTS paused_at TIMESTAMPTZ;

-- The backlogs. Deliveries wait in one while their receiver can't take them. Each row stands for a queue at
-- the broker, which holds the deliveries from `queue` for one webhook. The row is written before the queue is
-- created, and deleted with it. `since`, `cause` and `class` say since when and why the deliveries wait; they
-- wait until `until` at least. `closing_at`: an instance is about to delete the queue, unless it is opened
-- again. There is no foreign key: the queue outlives its webhook, and only this row records that it exists.
CREATE TABLE IF NOT EXISTS backlogs (
    queue TEXT NOT NULL,
    webhook_id UUID NOT NULL,
    since TIMESTAMPTZ NOT NULL DEFAULT now(),
    cause TEXT NOT NULL,
    class TEXT NOT NULL,
    until TIMESTAMPTZ,
    closing_at TIMESTAMPTZ,
    PRIMARY KEY (queue, webhook_id)
);

-- Notifies every instance when a backlog is added, closed or removed. It uses its own channel, since
-- `webhooks_changed` makes instances drop their cached webhooks. The reason why a backlog waits changes
-- often, so that change notifies nobody.
CREATE OR REPLACE FUNCTION backlogs_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('backlogs_changed', TG_RELID::text);
    RETURN NULL;
END
$$;
DROP TRIGGER IF EXISTS backlogs_changed ON backlogs;
CREATE TRIGGER backlogs_changed
    AFTER INSERT OR DELETE OR TRUNCATE OR UPDATE OF closing_at ON backlogs
    FOR EACH STATEMENT EXECUTE FUNCTION backlogs_changed();
