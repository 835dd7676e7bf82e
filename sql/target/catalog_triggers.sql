-- name: catalog_triggers
-- Triggers and rules that users created on tables (oids) and that are not disabled; O and A fire normally, R and A as
-- replica.
SELECT g.tgrelid AS table_oid, g.tgname::text AS name, g.tgenabled::text AS enabled, false AS is_rule
  FROM pg_catalog.pg_trigger g
 WHERE g.tgrelid = ANY ($1::oid[]) AND NOT g.tgisinternal AND g.tgenabled <> 'D'
UNION ALL
SELECT w.ev_class, w.rulename::text, w.ev_enabled::text, true
  FROM pg_catalog.pg_rewrite w
  JOIN pg_catalog.pg_class c ON c.oid = w.ev_class
 WHERE w.ev_class = ANY ($1::oid[]) AND c.relkind IN ('r', 'p') AND w.ev_enabled <> 'D'
 ORDER BY table_oid, name
