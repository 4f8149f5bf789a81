-- Finds the webhooks that want an event (events && $1) without reading the whole table.
CREATE INDEX IF NOT EXISTS webhooks_events_idx ON webhooks USING GIN (events);
