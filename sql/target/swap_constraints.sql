-- name: swap_constraints
-- Checks and foreign keys of tables (oids), and foreign keys that point to one of them, by name and definition.
SELECT k.conrelid AS table_oid,
       k.confrelid AS referenced_oid,
       n.nspname::text AS schema,
       c.relname::text AS table_name,
       rn.nspname::text AS referenced_schema,
       r.relname::text AS referenced_table,
       k.conname::text AS name,
       k.contype::text AS kind,
       pg_catalog.pg_get_constraintdef(k.oid) AS definition,
       k.convalidated AS is_validated,
       k.contype = 'f' AND k.condeferrable AND k.condeferred AND k.confdeltype = 'a' AND k.confupdtype = 'a'
       AND EXISTS (SELECT FROM cdc.target_table t
                    WHERE t.created_by_cdc AND t.target_schema = n.nspname AND t.target_table = c.relname) AS is_cdcs
  FROM pg_catalog.pg_constraint k
  JOIN pg_catalog.pg_class c ON c.oid = k.conrelid
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  LEFT JOIN pg_catalog.pg_class r ON r.oid = k.confrelid
  LEFT JOIN pg_catalog.pg_namespace rn ON rn.oid = r.relnamespace
 WHERE k.contype IN ('c', 'f') AND (k.conrelid = ANY ($1::oid[]) OR k.confrelid = ANY ($1::oid[]))
 ORDER BY k.conrelid, k.conname
