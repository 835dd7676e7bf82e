-- name: column_numbers
-- The oid of a table and the numbers of its columns by name; without those that it computes itself, which nobody writes.
SELECT c.oid::bigint AS oid, a.attname::text AS name, a.attnum::integer AS number
  FROM pg_catalog.pg_class c
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid
 WHERE n.nspname = $1 AND c.relname = $2 AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
 ORDER BY a.attnum
