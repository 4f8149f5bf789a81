-- The instances that are alive. They share the limits of webhooks. Each updates `beats` in its row every few
-- seconds, and deletes the row when it stops. The others delete a row whose `beats` no longer changes. `name`
-- is for people. `queues` are those that the instance serves now. An instance that starts or stops notifies
-- the others itself, so this table needs no trigger.
CREATE TABLE IF NOT EXISTS notifier_instances (
    id UUID PRIMARY KEY,
    name TEXT NOT NULL,
    queues TEXT[] NOT NULL,
    beats BIGINT NOT NULL DEFAULT 0,
    seen_at TIMESTAMPTZ NOT NULL DEFAULT now()
);
