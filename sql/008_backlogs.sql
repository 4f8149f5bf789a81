-- A paused webhook gets nothing for now and loses nothing; NULL: it isn't paused. Without a default,
-- so that adding the column to a full table rewrites nothing.
ALTER TABLE webhooks ADD COLUMN IF NOT EXISTS paused_at TIMESTAMPTZ;

-- Where deliveries wait that their receiver can't take now: a queue at the broker for each row, of
-- what came from `queue` for one webhook. Its row is written before the queue is made, and deleted
-- with it. `since`, `cause`, `class` and `until` say why they wait, and until when at least.
-- `closing_at`: somebody is about to delete the queue, unless it is opened again. No foreign key:
-- the queue outlives its webhook, and only its row tells that it is there.
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

-- Tells every notifier which backlogs there are. Not on the channel `webhooks_changed`, which makes
-- each of them forget its directory. Why a backlog waits changes often, and is told to nobody.
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
