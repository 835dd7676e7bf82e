-- name: catalog_types
-- Types by oid ($1) and modifier ($2), and every type that they are made of: the element of an array, the base of a
-- domain, the attributes of a composite, the subtype of a range, the range of a multirange.
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
            SELECT g.rngsubtype, -1 FROM pg_catalog.pg_range g WHERE t.typtype = 'r' AND g.rngtypid = t.oid
            UNION ALL
            SELECT g.rngtypid, -1 FROM pg_catalog.pg_range g WHERE t.typtype = 'm' AND g.rngmultitypid = t.oid
      ) AS part (oid, typmod)
)
SELECT r.oid, r.typmod, n.nspname::text AS schema, t.typname::text AS name,
       pg_catalog.format_type(r.oid, r.typmod) AS sql,
       CASE WHEN e.oid IS NOT NULL THEN 'a' ELSE t.typtype::text END AS kind,
       CASE WHEN e.oid IS NOT NULL THEN e.oid
            WHEN t.typtype = 'd' THEN t.typbasetype
            WHEN t.typtype = 'r' THEN g.rngsubtype
            WHEN t.typtype = 'm' THEN m.rngtypid
       END AS element_oid,
       CASE WHEN e.oid IS NOT NULL THEN r.typmod WHEN t.typtype = 'd' THEN t.typtypmod END AS element_typmod,
       ARRAY(SELECT l.enumlabel::text FROM pg_catalog.pg_enum l WHERE l.enumtypid = t.oid ORDER BY l.enumsortorder) AS labels,
       t.typsend <> 0 AS has_send,
       c.names AS attribute_names, c.oids AS attribute_oids, c.typmods AS attribute_typmods,
       CASE WHEN g.rngcanonical = 0 THEN
            (SELECT pg_catalog.concat_ws(', ',
                        CASE WHEN NOT o.opcdefault
                             THEN 'subtype_opclass = ' || quote_ident(opn.nspname) || '.' || quote_ident(o.opcname) END,
                        CASE WHEN g.rngcollation NOT IN (0, s.typcollation)
                             THEN 'collation = ' || quote_ident(kn.nspname) || '.' || quote_ident(k.collname) END,
                        CASE WHEN d.pronamespace = 'pg_catalog'::regnamespace
                             THEN 'subtype_diff = pg_catalog.' || quote_ident(d.proname) END,
                        'multirange_type_name = ' || quote_ident(mn.nspname) || '.' || quote_ident(mt.typname))
               FROM pg_catalog.pg_type s
               JOIN pg_catalog.pg_opclass o ON o.oid = g.rngsubopc
               JOIN pg_catalog.pg_namespace opn ON opn.oid = o.opcnamespace
               JOIN pg_catalog.pg_type mt ON mt.oid = g.rngmultitypid
               JOIN pg_catalog.pg_namespace mn ON mn.oid = mt.typnamespace
               LEFT JOIN pg_catalog.pg_proc d ON d.oid = g.rngsubdiff
               LEFT JOIN pg_catalog.pg_collation k ON k.oid = g.rngcollation
               LEFT JOIN pg_catalog.pg_namespace kn ON kn.oid = k.collnamespace
              WHERE s.oid = g.rngsubtype)
       END AS range_options,
       t.typtype = 'c' AND (SELECT x.relkind <> 'c' FROM pg_catalog.pg_class x WHERE x.oid = t.typrelid) AS is_row_type,
       t.oid = 'pg_catalog.interval'::pg_catalog.regtype
           AND pg_catalog.current_setting('server_version_num')::int4 < 170000 AS lacks_infinity
  FROM reached r
  JOIN pg_catalog.pg_type t ON t.oid = r.oid
  JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace
  LEFT JOIN pg_catalog.pg_type e ON e.oid = t.typelem AND e.typarray = t.oid
  LEFT JOIN pg_catalog.pg_range g ON g.rngtypid = t.oid
  LEFT JOIN pg_catalog.pg_range m ON m.rngmultitypid = t.oid
  CROSS JOIN LATERAL (
        SELECT coalesce(pg_catalog.array_agg(a.attname::text ORDER BY a.attnum), '{}') AS names,
               coalesce(pg_catalog.array_agg(a.atttypid ORDER BY a.attnum), '{}') AS oids,
               coalesce(pg_catalog.array_agg(a.atttypmod ORDER BY a.attnum), '{}') AS typmods
          FROM pg_catalog.pg_attribute a
         WHERE t.typtype = 'c' AND a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped
  ) AS c
