-- name: catalog_foreign_keys
-- Foreign keys that start at, or point to, tables (oids).
SELECT k.conname::text AS name,
       k.conrelid AS table_oid,
       k.confrelid AS referenced_oid,
       cn.nspname::text AS schema,
       c.relname::text AS table_name,
       rn.nspname::text AS referenced_schema,
       r.relname::text AS referenced_table,
       ARRAY(SELECT a.attname::text FROM unnest(k.conkey) WITH ORDINALITY AS u(attnum, place)
               JOIN pg_catalog.pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = u.attnum
              ORDER BY u.place) AS columns,
       ARRAY(SELECT a.attname::text FROM unnest(k.confkey) WITH ORDINALITY AS u(attnum, place)
               JOIN pg_catalog.pg_attribute a ON a.attrelid = k.confrelid AND a.attnum = u.attnum
              ORDER BY u.place) AS referenced_columns,
       k.confdeltype::text AS on_delete,
       k.confupdtype::text AS on_update,
       k.condeferrable AS deferrable,
       k.condeferred AS deferred
  FROM pg_catalog.pg_constraint k
  JOIN pg_catalog.pg_class c ON c.oid = k.conrelid
  JOIN pg_catalog.pg_namespace cn ON cn.oid = c.relnamespace
  JOIN pg_catalog.pg_class r ON r.oid = k.confrelid
  JOIN pg_catalog.pg_namespace rn ON rn.oid = r.relnamespace
 WHERE k.contype = 'f' AND (k.conrelid = ANY ($1::oid[]) OR k.confrelid = ANY ($1::oid[]))
 ORDER BY k.conrelid, k.conname
