-- name: definition_uncommented
-- What of a relation ($1, quoted) has no comment: itself, its columns, indexes and constraints.
WITH relation AS (SELECT to_regclass($1)::oid AS oid)
SELECT 'table' AS kind, '' AS name
  FROM relation r
 WHERE r.oid IS NOT NULL AND obj_description(r.oid, 'pg_class') IS NULL
 UNION ALL
SELECT 'column', a.attname::text
  FROM relation r
  JOIN pg_catalog.pg_attribute a ON a.attrelid = r.oid AND a.attnum > 0 AND NOT a.attisdropped
 WHERE col_description(a.attrelid, a.attnum) IS NULL
 UNION ALL
SELECT 'index', x.relname::text
  FROM relation r
  JOIN pg_catalog.pg_index i ON i.indrelid = r.oid
  JOIN pg_catalog.pg_class x ON x.oid = i.indexrelid
 WHERE obj_description(x.oid, 'pg_class') IS NULL
 UNION ALL
SELECT 'constraint', k.conname::text
  FROM relation r
  JOIN pg_catalog.pg_constraint k ON k.conrelid = r.oid
 WHERE obj_description(k.oid, 'pg_constraint') IS NULL
