-- name: swap_sequences
-- Sequences that columns of tables (oids) own and that live on without them (identity sequences do not).
SELECT d.refobjid AS table_oid, n.nspname::text AS schema, s.relname::text AS name, a.attname::text AS column_name
  FROM pg_catalog.pg_depend d
  JOIN pg_catalog.pg_class s ON s.oid = d.objid AND s.relkind = 'S'
  JOIN pg_catalog.pg_namespace n ON n.oid = s.relnamespace
  JOIN pg_catalog.pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
 WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.refclassid = 'pg_catalog.pg_class'::regclass
   AND d.deptype = 'a' AND d.refobjid = ANY ($1::oid[])
 ORDER BY 1, 2, 3
