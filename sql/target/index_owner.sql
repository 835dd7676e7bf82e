-- name: index_owner
-- The qualified table that a valid index of this schema ($1) and name ($2) belongs to; empty when the name is something else's.
SELECT CASE WHEN i.indisvalid THEN pg_catalog.format('"%s"."%s"', replace(tn.nspname, '"', '""'), replace(t.relname, '"', '""'))
            ELSE '' END
  FROM pg_catalog.pg_class c
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  LEFT JOIN pg_catalog.pg_index i ON i.indexrelid = c.oid
  LEFT JOIN pg_catalog.pg_class t ON t.oid = i.indrelid
  LEFT JOIN pg_catalog.pg_namespace tn ON tn.oid = t.relnamespace
 WHERE n.nspname = $1 AND c.relname = $2
