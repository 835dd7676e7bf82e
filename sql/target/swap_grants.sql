-- name: swap_grants
-- Who was granted what on tables (oids) and their columns, the owner's own rights excepted; PUBLIC is the grantee NULL.
SELECT c.oid AS table_oid, NULL::text AS column_name, g.privilege_type, g.is_grantable, r.rolname::text AS grantee
  FROM pg_catalog.pg_class c
 CROSS JOIN LATERAL pg_catalog.aclexplode(c.relacl) AS g
  LEFT JOIN pg_catalog.pg_roles r ON r.oid = g.grantee
 WHERE c.oid = ANY ($1::oid[]) AND g.grantee <> c.relowner AND (g.grantee = 0 OR r.oid IS NOT NULL)
 UNION
SELECT c.oid, a.attname::text, g.privilege_type, g.is_grantable, r.rolname::text
  FROM pg_catalog.pg_class c
  JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
 CROSS JOIN LATERAL pg_catalog.aclexplode(a.attacl) AS g
  LEFT JOIN pg_catalog.pg_roles r ON r.oid = g.grantee
 WHERE c.oid = ANY ($1::oid[]) AND g.grantee <> c.relowner AND (g.grantee = 0 OR r.oid IS NOT NULL)
 ORDER BY 1, 2 NULLS FIRST, 5 NULLS FIRST, 3
