-- name: definition_indexes
-- The indexes of tables (oids) other than primary keys: the text behind USING, the constraint that each belongs to, every
-- column that its key, its expressions and its predicate read, the extensions whose objects it uses,
-- and whether it has a predicate.
WITH indexes AS (
    SELECT i.*, t.relname AS table_name, t.relkind = 'p' AS is_partitioned, n.nspname AS schema_name, x.relname AS name,
           pg_get_indexdef(i.indexrelid) AS definition, o.oid AS constraint_oid, o.condeferrable, o.condeferred
      FROM pg_catalog.pg_index i
      JOIN pg_catalog.pg_class x ON x.oid = i.indexrelid
      JOIN pg_catalog.pg_class t ON t.oid = i.indrelid
      JOIN pg_catalog.pg_namespace n ON n.oid = t.relnamespace
      LEFT JOIN pg_catalog.pg_constraint o
        ON o.conindid = i.indexrelid AND o.conrelid = i.indrelid AND o.contype IN ('u', 'x')
     WHERE i.indrelid = ANY (%(tables)s::oid[]) AND i.indislive AND NOT i.indisprimary
), prefixed AS (
    -- pg_get_indexdef says ONLY for partitioned tables, for others not, and qualifies what the path does not hold.
    SELECT *, format('CREATE %%sINDEX %%I ON %%s%%I.%%I USING ', CASE WHEN indisunique THEN 'UNIQUE ' ELSE '' END,
                     name, CASE WHEN is_partitioned THEN 'ONLY ' ELSE '' END, schema_name, table_name) AS prefix
      FROM indexes
)
SELECT p.indrelid::bigint AS table_oid,
       p.name::text,
       CASE WHEN starts_with(p.definition, p.prefix) THEN substr(p.definition, length(p.prefix) + 1) END AS method,
       p.indisunique, p.indisvalid,
       CASE WHEN p.constraint_oid IS NULL THEN 'none' WHEN p.indisexclusion THEN 'exclusion' ELSE 'unique' END AS constraint_kind,
       pg_get_constraintdef(p.constraint_oid) AS constraint_definition,
       coalesce(p.condeferrable, false), coalesce(p.condeferred, false),
       pg_relation_size(p.indexrelid)::bigint AS bytes,
       ARRAY(SELECT a.attname::text
               FROM pg_catalog.pg_attribute a
              WHERE a.attrelid = p.indrelid AND NOT a.attisdropped
                AND (a.attnum = ANY (p.indkey::int2[])
                     OR EXISTS (SELECT
                                  FROM pg_catalog.pg_depend d
                                 WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = p.indexrelid
                                   AND d.refclassid = 'pg_catalog.pg_class'::regclass AND d.refobjid = p.indrelid
                                   AND d.refobjsubid = a.attnum))
              ORDER BY a.attnum) AS reads,
       ARRAY(SELECT DISTINCT e.extname::text
               FROM pg_catalog.pg_depend d
               JOIN pg_catalog.pg_depend m
                 ON m.classid = d.refclassid AND m.objid = d.refobjid AND m.deptype = 'e'
                AND m.refclassid = 'pg_catalog.pg_extension'::regclass
               JOIN pg_catalog.pg_extension e ON e.oid = m.refobjid
              WHERE (d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = p.indexrelid)
                 OR (d.classid = 'pg_catalog.pg_constraint'::regclass AND d.objid = p.constraint_oid)
              ORDER BY 1) AS extensions,
       p.indpred IS NOT NULL AS is_partial
  FROM prefixed p
 ORDER BY p.indrelid, p.name
