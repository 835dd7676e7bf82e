-- name: definition_sequences
-- The sequences that columns of tables (oids) own or take their defaults from, identity columns included. last_value is NULL
-- for a sequence that was never used, or that this role may not read.
WITH used (table_oid, attnum, sequence_oid) AS (
    SELECT d.refobjid, d.refobjsubid, d.objid
      FROM pg_catalog.pg_depend d
     WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.refclassid = 'pg_catalog.pg_class'::regclass
       AND d.refobjid = ANY (%(tables)s::oid[]) AND d.refobjsubid > 0 AND d.deptype IN ('a', 'i')
     UNION
    SELECT f.adrelid, f.adnum, d.refobjid
      FROM pg_catalog.pg_attrdef f
      JOIN pg_catalog.pg_depend d
        ON d.classid = 'pg_catalog.pg_attrdef'::regclass AND d.objid = f.oid
       AND d.refclassid = 'pg_catalog.pg_class'::regclass
     WHERE f.adrelid = ANY (%(tables)s::oid[])
)
SELECT u.table_oid::bigint, a.attname::text AS column_name, n.nspname::text AS schema, c.relname::text AS name,
       format_type(s.seqtypid, NULL) AS type, s.seqstart, s.seqincrement, s.seqmin, s.seqmax, s.seqcache, s.seqcycle,
       v.last_value
  FROM used u
  JOIN pg_catalog.pg_attribute a ON a.attrelid = u.table_oid AND a.attnum = u.attnum
  JOIN pg_catalog.pg_sequence s ON s.seqrelid = u.sequence_oid
  JOIN pg_catalog.pg_class c ON c.oid = u.sequence_oid
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  JOIN pg_catalog.pg_sequences v ON v.schemaname = n.nspname AND v.sequencename = c.relname
 ORDER BY 1, 3, 4
