-- name: definition_extensions
-- The columns of tables (oids) whose types, or the types that those are made of, belong to an extension.
WITH RECURSIVE reached (table_oid, column_name, oid) AS (
    SELECT a.attrelid, a.attname, a.atttypid
      FROM pg_catalog.pg_attribute a
     WHERE a.attrelid = ANY (%(tables)s::oid[]) AND a.attnum > 0 AND NOT a.attisdropped
     UNION
    SELECT r.table_oid, r.column_name, part.oid
      FROM reached r
      JOIN pg_catalog.pg_type t ON t.oid = r.oid
      CROSS JOIN LATERAL (
            SELECT t.typelem WHERE t.typelem <> 0
            UNION ALL
            SELECT t.typbasetype WHERE t.typtype = 'd'
            UNION ALL
            SELECT a.atttypid
              FROM pg_catalog.pg_attribute a
             WHERE t.typtype = 'c' AND a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped
            UNION ALL
            SELECT g.rngsubtype FROM pg_catalog.pg_range g WHERE t.oid IN (g.rngtypid, g.rngmultitypid)
      ) AS part (oid)
)
SELECT DISTINCT r.table_oid::bigint, r.column_name::text, e.extname::text
  FROM reached r
  JOIN pg_catalog.pg_depend d
    ON d.classid = 'pg_catalog.pg_type'::regclass AND d.objid = r.oid AND d.deptype = 'e'
   AND d.refclassid = 'pg_catalog.pg_extension'::regclass
  JOIN pg_catalog.pg_extension e ON e.oid = d.refobjid
 ORDER BY 1, 2, 3
