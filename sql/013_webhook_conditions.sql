-- What is known of webhooks beside what somebody has set, for those of which anything is: since when one
-- has failed without a success, as all notifiers together have seen it, and which changes have been told
-- by the exchange `webhooks.events`, so that one notifier tells each.
--
-- `failing_since`, `failed_at`: the first and the last known failure since its last success; written once a
-- minute at most. `open_since`: its circuit breaker has been open since then. `succeeded_at`: a success
-- that ended such a time. `rested_at`: it was paused or disabled then. Failures before these two count no
-- more. No foreign key: a row without a webhook is deleted within a minute.
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
-- Finds the few that get nothing now among many that do.
CREATE INDEX IF NOT EXISTS webhooks_at_rest_idx ON webhooks (id)
    WHERE disabled_at IS NOT NULL OR paused_at IS NOT NULL;
-- What was so before there were notices is news to nobody.
INSERT INTO webhook_conditions (webhook_id, told_disabled, told_paused)
    SELECT id, disabled_at IS NOT NULL, paused_at IS NOT NULL FROM webhooks
    WHERE id IS NOT NULL AND (disabled_at IS NOT NULL OR paused_at IS NOT NULL)
    ON CONFLICT DO NOTHING;
