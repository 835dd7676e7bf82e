-- name: catalog_types
-- Types by oid ($1) and modifier ($2), and every type that they are made of: the element of an array, the base of a
-- domain, the columns of a composite, the bounds of a range.
WITH RECURSIVE reached (oid, typmod) AS (
    SELECT w.oid, w.typmod FROM unnest($1::oid[], $2::int4[]) AS w (oid, typmod)
    UNION
    SELECT part.oid, part.typmod
      FROM reached r
      JOIN pg_catalog.pg_type t ON t.oid = r.oid
      CROSS JOIN LATERAL (
            SELECT e.oid, r.typmod FROM pg_catalog.pg_type e WHERE e.oid = t.typelem AND e.typarray = t.oid
            UNION ALL
            SELECT t.typbasetype, t.typtypmod WHERE t.typtype = 'd'
            UNION ALL
            SELECT a.atttypid, a.atttypmod
              FROM pg_catalog.pg_attribute a
             WHERE t.typtype = 'c' AND a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped
            UNION ALL
            SELECT g.rngsubtype, -1 FROM pg_catalog.pg_range g WHERE t.oid IN (g.rngtypid, g.rngmultitypid)
      ) AS part (oid, typmod)
)
SELECT r.oid, r.typmod, n.nspname::text AS schema, t.typname::text AS name,
       pg_catalog.format_type(r.oid, r.typmod) AS sql,
       CASE WHEN e.oid IS NOT NULL THEN 'a' ELSE t.typtype::text END AS kind,
       CASE WHEN e.oid IS NOT NULL THEN e.oid WHEN t.typtype = 'd' THEN t.typbasetype END AS element_oid,
       CASE WHEN e.oid IS NOT NULL THEN r.typmod WHEN t.typtype = 'd' THEN t.typtypmod END AS element_typmod,
       ARRAY(SELECT l.enumlabel::text FROM pg_catalog.pg_enum l WHERE l.enumtypid = t.oid ORDER BY l.enumsortorder) AS labels,
       t.typsend <> 0 AS has_send,
       ARRAY(SELECT a.atttypid
               FROM pg_catalog.pg_attribute a
              WHERE t.typtype = 'c' AND a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped
              UNION ALL
             SELECT g.rngsubtype FROM pg_catalog.pg_range g WHERE t.oid IN (g.rngtypid, g.rngmultitypid)) AS parts
  FROM reached r
  JOIN pg_catalog.pg_type t ON t.oid = r.oid
  JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace
  LEFT JOIN pg_catalog.pg_type e ON e.oid = t.typelem AND e.typarray = t.oid
