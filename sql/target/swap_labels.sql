-- name: swap_labels
-- Security labels on tables (oids) and their columns.
SELECT l.objoid AS table_oid, l.provider,
       pg_catalog.pg_describe_object('pg_catalog.pg_class'::regclass, l.objoid, l.objsubid) AS what
  FROM pg_catalog.pg_seclabel l
 WHERE l.classoid = 'pg_catalog.pg_class'::regclass AND l.objoid = ANY ($1::oid[])
 ORDER BY 1, 2, 3
