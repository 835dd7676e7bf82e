-- name: swap_views
-- Plain views (oids) as they are, to be made again under the same names over other tables.
SELECT c.oid,
       n.nspname::text AS schema,
       c.relname::text AS name,
       pg_catalog.pg_get_userbyid(c.relowner)::text AS owner,
       pg_catalog.pg_has_role(c.relowner, 'USAGE') AS is_ours,
       pg_catalog.has_schema_privilege(n.oid, 'CREATE') AS may_create,
       c.relpersistence = 't' AS is_temporary,
       coalesce(c.reloptions, '{}') AS options,
       rtrim(pg_catalog.pg_get_viewdef(c.oid), '; ') AS definition,
       ARRAY(SELECT a.attname::text FROM pg_catalog.pg_attribute a
              WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum) AS columns
  FROM pg_catalog.pg_class c
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE c.oid = ANY ($1::oid[])
 ORDER BY n.nspname, c.relname
