-- name: schema_holds_nothing
-- Whether a schema (a quoted name) is there and empty: everything that is in a schema depends on it.
SELECT pg_catalog.to_regnamespace($1) IS NOT NULL AND NOT EXISTS (
    SELECT FROM pg_catalog.pg_depend d
     WHERE d.refclassid = 'pg_catalog.pg_namespace'::regclass AND d.deptype = 'n'
       AND d.refobjid = pg_catalog.to_regnamespace($1))
