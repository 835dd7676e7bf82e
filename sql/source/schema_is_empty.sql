-- name: schema_is_empty
-- A row when the schema cdc exists and holds nothing.
SELECT 1
  FROM pg_catalog.pg_namespace n
 WHERE n.nspname = 'cdc'
   AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d
                    WHERE d.refclassid = 'pg_catalog.pg_namespace'::regclass AND d.refobjid = n.oid)
