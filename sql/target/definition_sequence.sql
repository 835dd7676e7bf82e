-- name: definition_sequence
-- What stands under the name ($2) of a sequence in a schema ($1), its comment and its position. No row when the name is free.
SELECT c.relkind = 'S' AS is_sequence, obj_description(c.oid, 'pg_class') AS comment, s.last_value
  FROM pg_catalog.pg_class c
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  LEFT JOIN pg_catalog.pg_sequences s ON s.schemaname = n.nspname AND s.sequencename = c.relname
 WHERE n.nspname = $1 AND c.relname = $2
