-- name: swap_taken_names
-- Which names of what comes along with new tables (oids $1: indexes and sequences) are taken in the schema that each goes to
-- ($2, beside it), by something that does not leave with the tables that are replaced (oids $3).
WITH wanted AS (
    SELECT * FROM unnest($1::oid[], $2::text[]) AS w (table_oid, schema)
), coming AS (
    SELECT w.table_oid, w.schema, x.relname
      FROM wanted w
      JOIN pg_catalog.pg_index i ON i.indrelid = w.table_oid
      JOIN pg_catalog.pg_class x ON x.oid = i.indexrelid
)
SELECT coming.table_oid, coming.schema, coming.relname::text AS name
  FROM coming
  JOIN pg_catalog.pg_namespace n ON n.nspname = coming.schema
  JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = coming.relname
  LEFT JOIN pg_catalog.pg_index i ON i.indexrelid = c.oid
 WHERE coalesce(i.indrelid, 0) <> ALL ($3::oid[]) AND c.oid <> ALL ($3::oid[])
 ORDER BY 1, 3
