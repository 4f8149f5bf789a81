-- The notification of a change names the webhooks that changed, and the patterns and accounts that they have
-- now. So instances drop only the cached answers that may be outdated, and keep all others: of a hundred
-- thousand webhooks, one changes all the time.
--
-- The payload's short form is the table's number, which means "anything may have changed". The long form adds
-- a space and {"ids": [...], "patterns": [...], "accounts": [...], "everybody": ...}. The long form is only
-- for few rows, and only if instances compare texts as PostgreSQL does: only ASCII, and no collation by which
-- different texts are equal. No error here may fail the statement that made the change; on an error, the
-- short form is sent.
CREATE OR REPLACE FUNCTION webhooks_changed() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    most CONSTANT INTEGER := 50;
    ids UUID[] := '{}';
    patterns TEXT[] := '{}';
    accounts TEXT[] := '{}';
    everybody BOOLEAN := false;
    what TEXT;
BEGIN
    BEGIN
        IF TG_OP = 'INSERT' THEN
            ids := ARRAY(SELECT id FROM new_rows LIMIT most + 1);
        ELSIF TG_OP IN ('UPDATE', 'DELETE') THEN
            ids := ARRAY(SELECT id FROM old_rows LIMIT most + 1);
        END IF;
        IF TG_OP <> 'TRUNCATE' AND cardinality(ids) = 0 THEN
            RETURN NULL;
        END IF;
        IF cardinality(ids) BETWEEN 1 AND most AND NOT EXISTS (
            SELECT FROM pg_attribute AS a LEFT JOIN pg_collation AS c ON c.oid = a.attcollation
            WHERE a.attrelid = TG_RELID AND a.attname IN ('events', 'account')
                AND NOT coalesce(c.collisdeterministic, true)
        ) THEN
            IF TG_OP = 'UPDATE' THEN
                -- The update may have changed the id.
                ids := ids || ARRAY(SELECT id FROM new_rows);
            END IF;
            IF TG_OP IN ('INSERT', 'UPDATE') THEN
                -- Checked before it is unpacked: its size has no limit.
                IF EXISTS (
                    SELECT FROM new_rows WHERE pg_column_size(events) > 4000 OR pg_column_size(account) > 4000
                ) THEN
                    RAISE program_limit_exceeded;
                END IF;
                patterns := ARRAY(
                    SELECT DISTINCT pattern FROM new_rows, unnest(events) AS pattern
                    WHERE pattern IS NOT NULL
                );
                -- Cut as in `webhooks_account_idx`.
                accounts := ARRAY(
                    SELECT DISTINCT left(account::text, 256) FROM new_rows WHERE account IS NOT NULL
                );
                everybody := EXISTS (SELECT FROM new_rows WHERE account IS NULL);
            END IF;
            IF array_position(ids, NULL) IS NULL AND cardinality(patterns) <= 1000 THEN
                what := json_build_object(
                    'ids', ARRAY(SELECT DISTINCT unnest(ids)), 'patterns', patterns,
                    'accounts', accounts, 'everybody', everybody)::text;
            END IF;
        END IF;
    EXCEPTION WHEN OTHERS THEN
        what := NULL;
    END;
    -- PostgreSQL's limit is 7,999 bytes.
    IF octet_length(what) <= 7900 AND what !~ '[^\x20-\x7e]' THEN
        PERFORM pg_notify('webhooks_changed', TG_RELID::text || ' ' || what);
    ELSE
        PERFORM pg_notify('webhooks_changed', TG_RELID::text);
    END IF;
    RETURN NULL;
END
$$;
-- One trigger for each kind of statement: otherwise PostgreSQL does not provide the changed rows. They have
-- new names: older instances, which don't understand the long form, miss the trigger that they know and cache
-- nothing.
DROP TRIGGER IF EXISTS webhooks_changed ON webhooks;
DROP TRIGGER IF EXISTS webhooks_inserted ON webhooks;
CREATE TRIGGER webhooks_inserted AFTER INSERT ON webhooks REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION webhooks_changed();
DROP TRIGGER IF EXISTS webhooks_updated ON webhooks;
CREATE TRIGGER webhooks_updated AFTER UPDATE ON webhooks
    REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION webhooks_changed();
DROP TRIGGER IF EXISTS webhooks_deleted ON webhooks;
CREATE TRIGGER webhooks_deleted AFTER DELETE ON webhooks REFERENCING OLD TABLE AS old_rows
    FOR EACH STATEMENT EXECUTE FUNCTION webhooks_changed();
DROP TRIGGER IF EXISTS webhooks_truncated ON webhooks;
CREATE TRIGGER webhooks_truncated AFTER TRUNCATE ON webhooks
    FOR EACH STATEMENT EXECUTE FUNCTION webhooks_changed();
-- By default, new entries of a GIN index wait in a list until a vacuum. Each search reads the whole list, up
-- to 4 MB, for every event type that is not cached.
ALTER INDEX IF EXISTS webhooks_events_idx SET (fastupdate = off);
ALTER INDEX IF EXISTS webhooks_everybodys_idx SET (fastupdate = off);
SELECT gin_clean_pending_list(to_regclass('webhooks_events_idx'))
    WHERE to_regclass('webhooks_events_idx') IS NOT NULL;
SELECT gin_clean_pending_list(to_regclass('webhooks_everybodys_idx'))
    WHERE to_regclass('webhooks_everybodys_idx') IS NOT NULL;
