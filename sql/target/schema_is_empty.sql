-- name: schema_is_empty
-- Whether the schema cdc exists and nothing depends on it any more.
SELECT EXISTS (SELECT FROM pg_catalog.pg_namespace n
                WHERE n.nspname = 'cdc'
                  AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d
                                   WHERE d.refclassid = 'pg_catalog.pg_namespace'::regclass AND d.refobjid = n.oid))
