-- name: kept_by_pipeline
-- The tables of the schema cdc, quoted, whose rows belong to a pipeline; those that others refer to come last.
SELECT 'cdc.' || quote_ident(c.relname) AS name
  FROM pg_catalog.pg_class c
  JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attname = 'pipeline' AND NOT a.attisdropped
 WHERE c.relnamespace = 'cdc'::regnamespace AND c.relkind = 'r'
 ORDER BY c.relname = 'target', c.relname = 'bootstrap_run', c.relname
