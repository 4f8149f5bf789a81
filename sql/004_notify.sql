-- Notifies every instance that this table has changed, so that it drops its cached webhooks. PostgreSQL sends
-- the notification when the change commits. The payload distinguishes tables of this name in other schemas.
CREATE OR REPLACE FUNCTION webhooks_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('webhooks_changed', TG_RELID::text);
    RETURN NULL;
END
$$;
DROP TRIGGER IF EXISTS webhooks_changed ON webhooks;
CREATE TRIGGER webhooks_changed
    AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON webhooks
    FOR EACH STATEMENT EXECUTE FUNCTION webhooks_changed();
