-- name: resync_leftovers
-- The tables of requests to read a table again (0005_resync), and of rows that are collected for tables which keep theirs
-- (cdc.bootstrap.incremental_plan), that stand in the schema cdc, quoted.
SELECT format('cdc.%I', c.relname) AS name
  FROM pg_catalog.pg_class c
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE n.nspname = 'cdc' AND c.relkind = 'r' AND c.relname ~ '^(resync_[0-9]+_(rows|bound|again)|incremental_[0-9a-f]+)$'
