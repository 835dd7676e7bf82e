-- name: definition_views
-- The views and materialized views that users made, with the relations that each reads (schema and name).
SELECT c.oid::bigint, n.nspname::text AS schema, c.relname::text AS name, c.relkind = 'm' AS is_materialized,
       pg_get_viewdef(c.oid) AS query,
       coalesce(c.reloptions, '{}') AS options,
       coalesce((SELECT jsonb_agg(DISTINCT jsonb_build_array(rn.nspname, r.relname))
                   FROM pg_catalog.pg_rewrite w
                   JOIN pg_catalog.pg_depend d
                     ON d.classid = 'pg_catalog.pg_rewrite'::regclass AND d.objid = w.oid
                    AND d.refclassid = 'pg_catalog.pg_class'::regclass AND d.refobjid <> c.oid
                   JOIN pg_catalog.pg_class r ON r.oid = d.refobjid
                   JOIN pg_catalog.pg_namespace rn ON rn.oid = r.relnamespace
                  WHERE w.ev_class = c.oid AND rn.nspname NOT IN ('pg_catalog', 'information_schema')), '[]') AS reads
  FROM pg_catalog.pg_class c
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind IN ('v', 'm')
   AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'cdc') AND n.nspname !~ '^pg_(toast|temp)'
   AND NOT EXISTS (SELECT
                     FROM pg_catalog.pg_depend d
                    WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
 ORDER BY n.nspname, c.relname
