-- name: definition_constraints
-- The checks and foreign keys of tables (oids). A column list is in the order of the key; PERIOD (PostgreSQL 18) belongs to
-- the last column of a key.
SELECT k.conrelid::bigint AS table_oid,
       k.conname::text AS name,
       k.contype::text AS kind,
       k.convalidated,
       pg_get_constraintdef(k.oid) AS definition,
       CASE WHEN k.contype = 'c' AND EXISTS (
                SELECT
                  FROM pg_catalog.pg_depend d
                 WHERE d.classid = 'pg_catalog.pg_constraint'::regclass AND d.objid = k.oid AND d.deptype = 'n'
                   AND d.refclassid = 'pg_catalog.pg_class'::regclass AND d.refobjid = k.conrelid AND d.refobjsubid = 0)
            -- It reads whole rows.
            THEN ARRAY(SELECT a.attname::text FROM pg_catalog.pg_attribute a
                        WHERE a.attrelid = k.conrelid AND a.attnum > 0 AND NOT a.attisdropped)
            ELSE ARRAY(SELECT a.attname::text
                         FROM unnest(k.conkey) WITH ORDINALITY AS u (attnum, place)
                         JOIN pg_catalog.pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = u.attnum
                        ORDER BY u.place)
       END AS columns,
       n.nspname::text AS parent_schema,
       p.relname::text AS parent_table,
       ARRAY(SELECT a.attname::text
               FROM unnest(k.confkey) WITH ORDINALITY AS u (attnum, place)
               JOIN pg_catalog.pg_attribute a ON a.attrelid = k.confrelid AND a.attnum = u.attnum
              ORDER BY u.place) AS parent_columns,
       k.confmatchtype = 'f' AS is_match_full,
       coalesce((to_jsonb(k) ->> 'conperiod')::boolean, false) AS has_period,
       ARRAY(SELECT DISTINCT e.extname::text
               FROM pg_catalog.pg_depend d
               JOIN pg_catalog.pg_depend m
                 ON m.classid = d.refclassid AND m.objid = d.refobjid AND m.deptype = 'e'
                AND m.refclassid = 'pg_catalog.pg_extension'::regclass
               JOIN pg_catalog.pg_extension e ON e.oid = m.refobjid
              WHERE d.classid = 'pg_catalog.pg_constraint'::regclass AND d.objid = k.oid
              ORDER BY 1) AS extensions
  FROM pg_catalog.pg_constraint k
  LEFT JOIN pg_catalog.pg_class p ON p.oid = k.confrelid
  LEFT JOIN pg_catalog.pg_namespace n ON n.oid = p.relnamespace
 WHERE k.conrelid = ANY (%(tables)s::oid[]) AND k.contype IN ('c', 'f') AND k.conparentid = 0
 ORDER BY k.conrelid, k.conname
