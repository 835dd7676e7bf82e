-- name: swap_indexes
-- The indexes of tables (oids), primary keys excepted. The definition is cut behind the table's name, so that it fits another one;
-- NULL where the server's text does not begin as expected.
SELECT i.indrelid AS table_oid,
       x.relname::text AS name,
       i.indisunique AS is_unique,
       i.indisvalid AS is_valid,
       CASE WHEN pg_catalog.starts_with(d.whole, d.head) THEN substr(d.whole, length(d.head) + 1) END AS definition,
       k.contype::text AS constraint_type,
       pg_catalog.pg_get_constraintdef(k.oid) AS constraint_definition,
       coalesce(k.condeferrable, false) AS deferrable,
       coalesce(k.condeferred, false) AS deferred
  FROM pg_catalog.pg_index i
  JOIN pg_catalog.pg_class x ON x.oid = i.indexrelid
  JOIN pg_catalog.pg_class t ON t.oid = i.indrelid
  JOIN pg_catalog.pg_namespace n ON n.oid = t.relnamespace
  LEFT JOIN pg_catalog.pg_constraint k ON k.conindid = i.indexrelid AND k.conrelid = i.indrelid AND k.contype IN ('u', 'x')
 CROSS JOIN LATERAL (
       SELECT pg_catalog.pg_get_indexdef(i.indexrelid),
              'CREATE ' || CASE WHEN i.indisunique THEN 'UNIQUE ' ELSE '' END || 'INDEX ' || quote_ident(x.relname)
              || ' ON ' || quote_ident(n.nspname) || '.' || quote_ident(t.relname) || ' '
 ) AS d (whole, head)
 WHERE i.indrelid = ANY ($1::oid[]) AND NOT i.indisprimary
 ORDER BY i.indrelid, x.relname
