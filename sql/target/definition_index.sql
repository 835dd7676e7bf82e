-- name: definition_index
-- What stands under the name ($2) of an index in a schema ($1): the table that it belongs to (NULL: it is no index), and
-- whether it is valid. No row when the name is free.
SELECT tn.nspname::text AS schema, t.relname::text AS table, coalesce(i.indisvalid, false) AS is_valid
  FROM pg_catalog.pg_class c
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  LEFT JOIN pg_catalog.pg_index i ON i.indexrelid = c.oid
  LEFT JOIN pg_catalog.pg_class t ON t.oid = i.indrelid
  LEFT JOIN pg_catalog.pg_namespace tn ON tn.oid = t.relnamespace
 WHERE n.nspname = $1 AND c.relname = $2
