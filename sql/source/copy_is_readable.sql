-- name: copy_is_readable
-- Whether this transaction's snapshot sees the rows of the table: false after a rewrite or TRUNCATE that is younger than
-- the snapshot (pg_class is read through the snapshot, pg_relation_filenode is not), no row for a table that is younger.
SELECT c.relfilenode = pg_catalog.pg_relation_filenode(c.oid)
  FROM pg_catalog.pg_class AS c
 WHERE c.oid = %(table)s::regclass
