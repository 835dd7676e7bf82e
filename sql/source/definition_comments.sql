-- name: definition_comments
-- Comments on relations (oids), their columns, indexes and constraints. The name of a relation itself is empty.
SELECT d.objoid::bigint AS table_oid,
       CASE WHEN d.objsubid = 0 THEN 'table' ELSE 'column' END AS kind,
       coalesce(a.attname::text, '') AS name,
       d.description
  FROM pg_catalog.pg_description d
  LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid = d.objoid AND a.attnum = d.objsubid AND d.objsubid > 0
 WHERE d.classoid = 'pg_catalog.pg_class'::regclass AND d.objoid = ANY (%(tables)s::oid[])
 UNION ALL
SELECT i.indrelid::bigint, 'index', x.relname::text, d.description
  FROM pg_catalog.pg_index i
  JOIN pg_catalog.pg_class x ON x.oid = i.indexrelid
  JOIN pg_catalog.pg_description d
    ON d.classoid = 'pg_catalog.pg_class'::regclass AND d.objoid = x.oid AND d.objsubid = 0
 WHERE i.indrelid = ANY (%(tables)s::oid[])
 UNION ALL
SELECT k.conrelid::bigint, 'constraint', k.conname::text, d.description
  FROM pg_catalog.pg_constraint k
  JOIN pg_catalog.pg_description d ON d.classoid = 'pg_catalog.pg_constraint'::regclass AND d.objoid = k.oid
 WHERE k.conrelid = ANY (%(tables)s::oid[])
 ORDER BY 1, 2, 3
