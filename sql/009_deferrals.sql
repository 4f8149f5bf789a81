-- Early tables of the log counted how often a delivery was deferred. Now a delivery that can't be attempted
-- waits in its receiver's backlog, once.
ALTER TABLE delivery_attempts DROP COLUMN IF EXISTS deferrals;
