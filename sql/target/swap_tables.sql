-- name: swap_tables
-- What replacing a table has to know of it, and of what takes its place: relations named by two arrays (schemas $1, names $2).
-- $3 is the privilege on a role that lets us give a table to it: SET since PostgreSQL 16, MEMBER before.
SELECT n.nspname::text AS schema,
       c.relname::text AS name,
       c.oid,
       c.relkind::text AS relkind,
       pg_catalog.pg_get_userbyid(c.relowner)::text AS owner,
       pg_catalog.pg_has_role(c.relowner, 'USAGE') AS is_ours,
       pg_catalog.pg_get_userbyid(c.relowner) = current_user OR pg_catalog.pg_has_role(c.relowner, $3) AS may_give,
       pg_catalog.has_schema_privilege(n.oid, 'CREATE') AS may_create,
       c.relreplident::text AS replica_identity,
       (SELECT x.relname::text FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class x ON x.oid = i.indexrelid
         WHERE i.indrelid = c.oid AND i.indisreplident) AS identity_index,
       c.relrowsecurity AS row_security,
       c.relforcerowsecurity AS force_row_security,
       coalesce(c.reloptions, '{}')
       || ARRAY(SELECT 'toast.' || o FROM pg_catalog.pg_class t, unnest(t.reloptions) AS o WHERE t.oid = c.reltoastrelid) AS options,
       pg_catalog.obj_description(c.oid, 'pg_class') AS comment
  FROM unnest($1::text[], $2::text[]) AS wanted (schema, name)
  JOIN pg_catalog.pg_namespace n ON n.nspname = wanted.schema
  JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = wanted.name
