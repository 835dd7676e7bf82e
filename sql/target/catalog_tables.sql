-- name: catalog_tables
-- The tables named by two parallel arrays (schemas, names), with what our role may do to them. What can be deferred is a
-- unique or exclusion constraint, a foreign key that starts or ends here, or a constraint trigger.
SELECT c.oid,
       n.nspname::text AS schema,
       c.relname::text AS name,
       c.relkind::text AS relkind,
       c.relpersistence::text AS persistence,
       pg_catalog.row_security_active(c.oid) AS row_security,
       current_user::text AS role,
       ARRAY(SELECT p FROM unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE']) AS p
              WHERE pg_catalog.has_table_privilege(c.oid, p)) AS privileges,
       EXISTS (SELECT FROM pg_catalog.pg_constraint k
                WHERE k.condeferrable AND c.oid IN (k.conrelid, k.confrelid)) AS can_defer,
       pg_catalog.current_setting('server_version_num')::int4 < 170000 AS lacks_infinity
  FROM unnest($1::text[], $2::text[]) AS wanted(schema, name)
  JOIN pg_catalog.pg_namespace n ON n.nspname = wanted.schema
  JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = wanted.name
 WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f')
