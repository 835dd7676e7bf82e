-- name: column_numbers
-- Of the tables named by two parallel arrays (schemas, names) the oids, and the numbers of their columns by name; without those
-- that a table computes itself, which nobody writes.
SELECT n.nspname::text AS schema, c.relname::text AS table_name, c.oid::bigint AS oid,
       a.attname::text AS name, a.attnum::integer AS number
  FROM unnest($1::text[], $2::text[]) AS wanted (schema, name)
  JOIN pg_catalog.pg_namespace n ON n.nspname = wanted.schema
  JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = wanted.name
  JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid
 WHERE a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
 ORDER BY c.oid, a.attnum
