-- name: sequences
-- The sequences that columns of tables (oids, or NULL for all of users' tables) own or take their defaults from, identity
-- columns included. last_value is NULL for one that was never used since it was created or restarted, or that this role may
-- not read; is_readable: it may select.
WITH used (table_oid, attnum, sequence_oid) AS (
    SELECT d.refobjid, d.refobjsubid, d.objid
      FROM pg_catalog.pg_depend d
     WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.refclassid = 'pg_catalog.pg_class'::regclass
       AND d.refobjsubid > 0 AND d.deptype IN ('a', 'i')
       AND (%(tables)s::oid[] IS NULL OR d.refobjid = ANY (%(tables)s::oid[]))
     UNION
    SELECT f.adrelid, f.adnum, d.refobjid
      FROM pg_catalog.pg_attrdef f
      JOIN pg_catalog.pg_depend d
        ON d.classid = 'pg_catalog.pg_attrdef'::regclass AND d.objid = f.oid
       AND d.refclassid = 'pg_catalog.pg_class'::regclass
     WHERE %(tables)s::oid[] IS NULL OR f.adrelid = ANY (%(tables)s::oid[])
)
SELECT t.oid::bigint AS table_oid, tn.nspname::text AS table_schema, t.relname::text AS table_name, a.attname::text AS column_name,
       n.nspname::text AS schema, c.relname::text AS name,
       format_type(s.seqtypid, NULL) AS type, s.seqstart, s.seqincrement, s.seqmin, s.seqmax, s.seqcache, s.seqcycle,
       v.last_value,
       has_sequence_privilege(c.oid, 'SELECT') AND has_schema_privilege(n.oid, 'USAGE') AS is_readable
  FROM used u
  JOIN pg_catalog.pg_class t ON t.oid = u.table_oid AND t.relkind IN ('r', 'p')
  JOIN pg_catalog.pg_namespace tn ON tn.oid = t.relnamespace
  JOIN pg_catalog.pg_attribute a ON a.attrelid = u.table_oid AND a.attnum = u.attnum
  JOIN pg_catalog.pg_sequence s ON s.seqrelid = u.sequence_oid
  JOIN pg_catalog.pg_class c ON c.oid = u.sequence_oid AND c.relpersistence <> 't'
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  JOIN pg_catalog.pg_sequences v ON v.schemaname = n.nspname AND v.sequencename = c.relname
 ORDER BY 2, 3, 4, 5, 6
