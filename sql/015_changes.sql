-- A change tells which webhooks it is about, and what of whose events these get now, so that notifiers forget
-- the answers that it may have made untrue, and keep all others: of a hundred thousand webhooks one changes all
-- the time.
--
-- The payload is the table as a number, which means "anything may have changed", or that, a space and
-- {"ids": [...], "patterns": [...], "accounts": [...], "everybody": ...}. The long form is only for few rows, and only
-- where the notifiers' comparison of texts is PostgreSQL's: with ASCII, and no collation by which different
-- texts are equal. Whatever goes wrong here must not fail the statement that has changed something: it is told
-- in the short form.
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
                -- The id may be what has changed.
                ids := ids || ARRAY(SELECT id FROM new_rows);
            END IF;
            IF TG_OP IN ('INSERT', 'UPDATE') THEN
                -- Before it is unpacked: it may be as large as somebody likes.
                IF EXISTS (
                    SELECT FROM new_rows WHERE pg_column_size(events) > 4000 OR pg_column_size(account) > 4000
                ) THEN
                    RAISE program_limit_exceeded;
                END IF;
                patterns := ARRAY(
                    SELECT DISTINCT pattern FROM new_rows, unnest(events) AS pattern
                    WHERE pattern IS NOT NULL
                );
                -- As `webhooks_account_idx` has them.
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
    -- PostgreSQL takes 7,999 bytes.
    IF octet_length(what) <= 7900 AND what !~ '[^\x20-\x7e]' THEN
        PERFORM pg_notify('webhooks_changed', TG_RELID::text || ' ' || what);
    ELSE
        PERFORM pg_notify('webhooks_changed', TG_RELID::text);
    END IF;
    RETURN NULL;
END
$$;
-- One for each kind of statement: only so can it be asked which rows that has changed. Under new names: older
-- notifiers, which don't understand the long form, miss the trigger that they know and remember nothing.
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
-- What is new in a GIN index waits in a list until a vacuum, and each search reads all of it: up to 4 MB, for
-- every type of event that is not remembered.
ALTER INDEX IF EXISTS webhooks_events_idx SET (fastupdate = off);
ALTER INDEX IF EXISTS webhooks_everybodys_idx SET (fastupdate = off);
SELECT gin_clean_pending_list(to_regclass('webhooks_events_idx'))
    WHERE to_regclass('webhooks_events_idx') IS NOT NULL;
SELECT gin_clean_pending_list(to_regclass('webhooks_everybodys_idx'))
    WHERE to_regclass('webhooks_everybodys_idx') IS NOT NULL;
