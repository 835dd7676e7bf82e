-- name: filenodes
-- Oid, file and number of attributes (dropped ones included) of every table of users, by schema.table.
SELECT n.nspname || '.' || c.relname, c.oid::bigint, pg_catalog.pg_relation_filenode(c.oid)::bigint, c.relnatts::integer
  FROM pg_catalog.pg_class c
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind = 'r' AND c.relpersistence = 'p'
