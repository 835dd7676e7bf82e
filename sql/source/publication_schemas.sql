-- name: publication_schemas
-- The schemas that publications hold as a whole (PostgreSQL 15 and later).
SELECT p.pubname::text, n.nspname::text
  FROM pg_catalog.pg_publication_namespace s
  JOIN pg_catalog.pg_publication p ON p.oid = s.pnpubid
  JOIN pg_catalog.pg_namespace n ON n.oid = s.pnnspid
 WHERE p.pubname = ANY (%(names)s::text[])
 ORDER BY p.pubname, n.nspname
