-- name: type_oids
-- The oids of the types named by two parallel arrays (schemas, names).
SELECT t.oid, n.nspname::text AS schema, t.typname::text AS name
  FROM unnest($1::text[], $2::text[]) AS wanted(schema, name)
  JOIN pg_catalog.pg_namespace n ON n.nspname = wanted.schema
  JOIN pg_catalog.pg_type t ON t.typnamespace = n.oid AND t.typname = wanted.name
