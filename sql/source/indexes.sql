-- name: indexes
-- The indexes of one table, with the constraint that each belongs to, and every column that its key, its
-- expressions and its predicate read.
SELECT ic.relname::text AS name,
       pg_get_indexdef(i.indexrelid) AS definition,
       i.indisprimary, i.indisunique, i.indisvalid,
       o.conname::text AS constraint_name,
       pg_get_constraintdef(o.oid) AS constraint_definition,
       CASE WHEN 0 <> ALL (i.indkey::int2[]) THEN
           ARRAY(SELECT a.attname::text
                   FROM unnest((i.indkey::int2[])[0:i.indnkeyatts - 1]) WITH ORDINALITY AS u (attnum, place)
                   JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = u.attnum
                  ORDER BY u.place)
       END AS columns,
       ARRAY(SELECT a.attname::text
               FROM pg_catalog.pg_attribute a
              WHERE a.attrelid = i.indrelid
                AND (a.attnum = ANY (i.indkey::int2[])
                     OR EXISTS (SELECT
                                  FROM pg_catalog.pg_depend d
                                 WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = i.indexrelid
                                   AND d.refclassid = 'pg_catalog.pg_class'::regclass AND d.refobjid = i.indrelid
                                   AND d.refobjsubid = a.attnum))
              ORDER BY a.attnum) AS reads
  FROM pg_catalog.pg_index i
  JOIN pg_catalog.pg_class ic ON ic.oid = i.indexrelid
  LEFT JOIN pg_catalog.pg_constraint o
    ON o.conindid = i.indexrelid AND o.conrelid = i.indrelid AND o.contype IN ('p', 'u', 'x')
 WHERE i.indrelid = %(table)s::oid AND i.indislive
 ORDER BY ic.relname
