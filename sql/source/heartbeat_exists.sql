-- name: heartbeat_exists
-- A row when the heartbeat's table is there, whether or not this role may use the schema.
SELECT 1
  FROM pg_catalog.pg_class c
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE n.nspname = 'cdc' AND c.relname = 'heartbeat'
