-- The observed conditions of webhooks; a webhook without any has no row. A row says since when all instances
-- together have seen the webhook fail without a success. It also says which changes the exchange
-- `webhooks.events` has published, so that only one instance publishes each.
--
-- `failing_since`, `failed_at`: the first and the last known failure since the last success; written at most
-- once a minute. `open_since`: since when its circuit breaker has been open. `succeeded_at`: when a success
-- ended the failures. `rested_at`: when it was paused or disabled. Failures before these two no longer count.
-- There is no foreign key: a row without a webhook is deleted within a minute.
CREATE TABLE IF NOT EXISTS webhook_conditions (
    webhook_id UUID PRIMARY KEY,
    failing_since TIMESTAMPTZ,
    failed_at TIMESTAMPTZ,
    open_since TIMESTAMPTZ,
    succeeded_at TIMESTAMPTZ,
    rested_at TIMESTAMPTZ,
    told_failing_at TIMESTAMPTZ,
    told_disabled BOOLEAN NOT NULL DEFAULT false,
    told_paused BOOLEAN NOT NULL DEFAULT false
);
-- Finds the few webhooks that are disabled or paused among many that are not.
CREATE INDEX IF NOT EXISTS webhooks_at_rest_idx ON webhooks (id)
    WHERE disabled_at IS NOT NULL OR paused_at IS NOT NULL;
-- Webhooks that were disabled or paused before notices existed are not news.
INSERT INTO webhook_conditions (webhook_id, told_disabled, told_paused)
    SELECT id, disabled_at IS NOT NULL, paused_at IS NOT NULL FROM webhooks
    WHERE id IS NOT NULL AND (disabled_at IS NOT NULL OR paused_at IS NOT NULL)
    ON CONFLICT DO NOTHING;
