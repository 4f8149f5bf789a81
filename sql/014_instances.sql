-- The instances that are alive, among which the limits of webhooks are shared. Each writes its row every
-- few seconds, so that `beats` changes, and deletes it when it ends; the others delete those of which it
-- does not change any more. `name` is for people; `queues` are those that it serves now. Who comes or goes
-- notifies the others itself: no row is of any use without its instance.
CREATE TABLE IF NOT EXISTS notifier_instances (
    id UUID PRIMARY KEY,
    name TEXT NOT NULL,
    queues TEXT[] NOT NULL,
    beats BIGINT NOT NULL DEFAULT 0,
    seen_at TIMESTAMPTZ NOT NULL DEFAULT now()
);
