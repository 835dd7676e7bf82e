-- name: catalog_triggers
-- Triggers that users created on tables (oids) and that are not disabled; O and A fire normally, R and A as replica.
SELECT g.tgrelid AS table_oid, g.tgname::text AS name, g.tgenabled::text AS enabled
  FROM pg_catalog.pg_trigger g
 WHERE g.tgrelid = ANY ($1::oid[]) AND NOT g.tgisinternal AND g.tgenabled <> 'D'
 ORDER BY g.tgrelid, g.tgname
