-- name: sequences
-- What stands under the names ($2) of sequences in schemas ($1, one for each), with its comment, its definition and its position.
-- last_value is NULL for one that was never used since it was created or restarted. No row where the name is free.
SELECT n.nspname::text AS schema, c.relname::text AS name, c.relkind = 'S' AS is_sequence,
       obj_description(c.oid, 'pg_class') AS comment, format_type(s.seqtypid, NULL) AS type, s.seqstart AS start,
       s.seqincrement AS increment, s.seqmin AS minimum, s.seqmax AS maximum, s.seqcache AS cache, s.seqcycle AS cycles,
       v.last_value
  FROM unnest($1::text[], $2::text[]) AS w (schema, name)
  JOIN pg_catalog.pg_namespace n ON n.nspname = w.schema
  JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = w.name
  LEFT JOIN pg_catalog.pg_sequence s ON s.seqrelid = c.oid
  LEFT JOIN pg_catalog.pg_sequences v ON v.schemaname = n.nspname AND v.sequencename = c.relname
