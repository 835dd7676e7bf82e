-- name: partition_ancestors
-- Relations (oids) that are leaves of a partitioned table now, each with the root; as `leaves` describes them. Takes no lock.
WITH RECURSIVE up (leaf, relid, attachment, is_born) AS (
    SELECT r.oid, r.oid, ''::text, true
      FROM unnest(%(relations)s::oid[]) AS r (oid)
    UNION ALL
    SELECT u.leaf, i.inhparent, u.attachment || i.xmin::text || '/',
           u.is_born AND EXISTS (
               SELECT
                 FROM pg_catalog.pg_attribute made
                 JOIN pg_catalog.pg_attribute a ON a.attrelid = made.attrelid AND a.attnum > 0
                WHERE made.attrelid = i.inhrelid AND made.attnum = -1 AND made.xmin::text = i.xmin::text
                  AND a.xmin::text = made.xmin::text AND a.cmin::text = made.cmin::text)
      FROM up u
      JOIN pg_catalog.pg_class c ON c.oid = u.relid AND c.relispartition
      JOIN pg_catalog.pg_inherits i ON i.inhrelid = u.relid AND NOT i.inhdetachpending
)
SELECT u.leaf::bigint, n.nspname::text, c.relname::text, u.attachment, u.is_born AND c.relfilenode = c.oid,
       r.oid::bigint AS root_oid, rn.nspname::text AS root_schema, r.relname::text AS root_name
  FROM up u
  JOIN pg_catalog.pg_class r ON r.oid = u.relid AND r.relkind = 'p' AND NOT r.relispartition
  JOIN pg_catalog.pg_namespace rn ON rn.oid = r.relnamespace
  JOIN pg_catalog.pg_class c ON c.oid = u.leaf AND c.relkind <> 'p'
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
