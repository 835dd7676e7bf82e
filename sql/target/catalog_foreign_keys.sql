-- name: catalog_foreign_keys
-- Foreign keys that start at, or point to, tables (oids).
SELECT k.conname::text AS name,
       k.conrelid AS table_oid,
       k.confrelid AS referenced_oid,
       rn.nspname::text AS referenced_schema,
       r.relname::text AS referenced_table,
       k.confdeltype::text AS on_delete,
       k.confupdtype::text AS on_update,
       ARRAY(SELECT a.attname::text FROM pg_catalog.pg_attribute a
              WHERE a.attrelid = k.conrelid AND a.attnum = ANY (k.conkey)) AS columns,
       k.condeferrable AS deferrable
  FROM pg_catalog.pg_constraint k
  JOIN pg_catalog.pg_class r ON r.oid = k.confrelid
  JOIN pg_catalog.pg_namespace rn ON rn.oid = r.relnamespace
 WHERE k.contype = 'f' AND (k.conrelid = ANY ($1::oid[]) OR k.confrelid = ANY ($1::oid[]))
 ORDER BY k.conrelid, k.conname
