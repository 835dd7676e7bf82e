-- name: filenodes
-- Oid and file of every table of users, by schema.table. TRUNCATE and whatever rewrites a table give it another file.
SELECT n.nspname || '.' || c.relname, c.oid::bigint, pg_catalog.pg_relation_filenode(c.oid)::bigint
  FROM pg_catalog.pg_class c
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind = 'r' AND c.relpersistence = 'p'
