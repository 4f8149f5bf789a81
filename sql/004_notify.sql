-- Tells every notifier that what it remembers of this table is no longer true, at the commit of
-- whatever statement changed it. The payload tells tables of that name in other schemas apart.
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
