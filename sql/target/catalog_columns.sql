-- name: catalog_columns
-- The columns of tables (oids), in attnum order, with their types by oid and modifier. Values that equality takes for
-- one although their texts differ are those of a non-deterministic collation, and of citext.
SELECT a.attrelid AS table_oid,
       a.attname::text AS name,
       a.atttypid AS type_oid,
       a.atttypmod AS typmod,
       a.attnotnull OR t.typnotnull AS not_null,
       a.attgenerated <> '' AS generated,
       a.attidentity::text AS identity,
       a.attgenerated = '' AND (a.atthasdef OR a.attidentity <> '' OR t.typdefault IS NOT NULL) AS has_default,
       t.typname = 'citext' OR EXISTS (SELECT FROM pg_catalog.pg_collation o
                                        WHERE o.oid = a.attcollation AND NOT o.collisdeterministic) AS equates_texts
  FROM pg_catalog.pg_attribute a
  JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
 WHERE a.attrelid = ANY ($1::oid[]) AND a.attnum > 0 AND NOT a.attisdropped
 ORDER BY a.attrelid, a.attnum
