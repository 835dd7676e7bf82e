-- name: catalog_unique_keys
-- Valid unique indexes over plain columns without a predicate, of tables (oids): what can identify a row.
SELECT i.indrelid AS table_oid,
       x.relname::text AS name,
       i.indisprimary AS is_primary,
       i.indimmediate AS is_immediate,
       ARRAY(SELECT a.attname::text
               FROM unnest(i.indkey::int2[]) WITH ORDINALITY AS c(attnum, place)
               JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = c.attnum
              WHERE c.place <= i.indnkeyatts
              ORDER BY c.place) AS columns
  FROM pg_catalog.pg_index i
  JOIN pg_catalog.pg_class x ON x.oid = i.indexrelid
 WHERE i.indrelid = ANY ($1::oid[])
   AND i.indisunique AND i.indisvalid AND i.indisready AND i.indpred IS NULL AND i.indexprs IS NULL
 ORDER BY i.indrelid, i.indisprimary DESC, i.indnkeyatts, x.relname
