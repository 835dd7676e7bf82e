-- name: is_migrated
-- Whether the cdc schema and its list of migrations exist here, and whether our role may use them.
SELECT n.oid IS NOT NULL AS has_schema,
       m.oid IS NOT NULL AS has_migrations,
       CASE WHEN n.oid IS NOT NULL AND m.oid IS NOT NULL
            THEN pg_catalog.has_schema_privilege(n.oid, 'USAGE') AND pg_catalog.has_table_privilege(m.oid, 'SELECT')
       END AS is_readable
  FROM (VALUES ('cdc')) AS wanted(schema)
  LEFT JOIN pg_catalog.pg_namespace n ON n.nspname = wanted.schema
  LEFT JOIN pg_catalog.pg_class m ON m.relnamespace = n.oid AND m.relname = 'migration'
