-- name: check_schemas
-- Which of these schemas ($1) exist, and what our role may do in them.
SELECT n.nspname::text AS name,
       pg_catalog.has_schema_privilege(n.oid, 'USAGE') AS may_use,
       pg_catalog.has_schema_privilege(n.oid, 'CREATE') AS may_create
  FROM pg_catalog.pg_namespace n
 WHERE n.nspname = ANY ($1::text[])
