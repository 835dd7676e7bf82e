-- name: swap_dependents
-- Everything that depends on tables (oids) and is no part of them (their indexes, constraints, defaults, row types, identity
-- sequences are). What pg_depend knows is all that a DROP would meet; how each is removed and made again, where SQL can say it.
WITH RECURSIVE part (classid, objid, table_oid) AS (
    SELECT 'pg_catalog.pg_class'::regclass::oid, w.oid, w.oid FROM unnest($1::oid[]) AS w (oid)
     UNION
    SELECT d.classid, d.objid, p.table_oid
      FROM part p
      JOIN pg_catalog.pg_depend d ON d.refclassid = p.classid AND d.refobjid = p.objid
      LEFT JOIN pg_catalog.pg_class c ON d.classid = 'pg_catalog.pg_class'::regclass AND c.oid = d.objid
     WHERE d.deptype IN ('a', 'i')
       AND (d.classid IN ('pg_catalog.pg_constraint'::regclass, 'pg_catalog.pg_type'::regclass, 'pg_catalog.pg_attrdef'::regclass)
            OR c.relkind IN ('i', 't') OR (c.relkind = 'S' AND d.deptype = 'i'))
), dependent AS (
    SELECT p.table_oid, d.classid, d.objid, bool_or(p.classid = 'pg_catalog.pg_type'::regclass) AS is_of_row_type
      FROM part p
      JOIN pg_catalog.pg_depend d ON d.refclassid = p.classid AND d.refobjid = p.objid
     WHERE NOT EXISTS (SELECT FROM part q WHERE q.classid = d.classid AND q.objid = d.objid)
     GROUP BY p.table_oid, d.classid, d.objid
)
SELECT d.table_oid,
       d.objid,
       CASE WHEN rw.rulename = '_RETURN' AND rc.relkind = 'v' THEN 'view'
            WHEN rw.rulename = '_RETURN' AND rc.relkind = 'm' THEN 'materialized view'
            WHEN c.relkind = 'S' THEN 'sequence'
            WHEN c.relkind = 'v' THEN 'view of its row type'
            WHEN c.relkind IN ('r', 'p', 'f') AND h.inhrelid IS NOT NULL THEN 'child table'
            WHEN k.contype = 'f' THEN 'foreign key'
            WHEN g.tgisinternal THEN 'internal'
            ELSE i.type END AS kind,
       CASE WHEN rw.rulename = '_RETURN' THEN rc.oid ELSE d.objid END AS relation_oid,
       CASE WHEN rw.rulename = '_RETURN' THEN pg_catalog.format('%I.%I', rn.nspname, rc.relname) ELSE i.identity END AS identity,
       CASE WHEN c.relkind IN ('r', 'p', 'f') AND h.inhrelid IS NOT NULL THEN
                CASE WHEN c.relispartition THEN pg_catalog.format('ALTER TABLE %s DETACH PARTITION %s;', d.table_oid::regclass, i.identity)
                     ELSE pg_catalog.format('ALTER TABLE %s NO INHERIT %s;', i.identity, d.table_oid::regclass) END
            WHEN rw.rulename = '_RETURN' AND rc.relkind = 'm' THEN pg_catalog.format('DROP MATERIALIZED VIEW %I.%I;', rn.nspname, rc.relname)
            WHEN i.type IN ('function', 'procedure', 'aggregate', 'trigger', 'policy', 'rule') THEN pg_catalog.format('DROP %s %s;', upper(i.type), i.identity)
            WHEN i.type = 'statistics object' THEN pg_catalog.format('DROP STATISTICS %s;', i.identity)
       END AS remove,
       CASE WHEN rw.rulename = '_RETURN' AND rc.relkind = 'm' THEN
                pg_catalog.format('CREATE MATERIALIZED VIEW %I.%I AS %s', rn.nspname, rc.relname, pg_catalog.pg_get_viewdef(rc.oid))
                || coalesce((SELECT string_agg(E'\n' || pg_catalog.pg_get_indexdef(x.indexrelid) || ';', '' ORDER BY x.indexrelid)
                               FROM pg_catalog.pg_index x WHERE x.indrelid = rc.oid), '')
            WHEN rw.oid IS NOT NULL AND rw.rulename <> '_RETURN' THEN pg_catalog.pg_get_ruledef(rw.oid)
            WHEN p.prokind IN ('f', 'p', 'w') THEN rtrim(pg_catalog.pg_get_functiondef(p.oid), E'\n') || ';'
            WHEN g.oid IS NOT NULL THEN pg_catalog.pg_get_triggerdef(g.oid) || ';'
            WHEN s.oid IS NOT NULL THEN pg_catalog.pg_get_statisticsobjdef(s.oid) || ';'
            WHEN o.oid IS NOT NULL THEN
                pg_catalog.format('CREATE POLICY %I ON %s AS %s FOR %s TO %s', o.polname, o.polrelid::regclass,
                    CASE WHEN o.polpermissive THEN 'PERMISSIVE' ELSE 'RESTRICTIVE' END,
                    CASE o.polcmd WHEN 'r' THEN 'SELECT' WHEN 'a' THEN 'INSERT' WHEN 'w' THEN 'UPDATE' WHEN 'd' THEN 'DELETE' ELSE 'ALL' END,
                    (SELECT string_agg(CASE WHEN m = 0 THEN 'PUBLIC' ELSE quote_ident(pg_catalog.pg_get_userbyid(m)) END, ', ') FROM unnest(o.polroles) AS m))
                || coalesce(' USING (' || pg_catalog.pg_get_expr(o.polqual, o.polrelid) || ')', '')
                || coalesce(' WITH CHECK (' || pg_catalog.pg_get_expr(o.polwithcheck, o.polrelid) || ')', '') || ';'
       END AS restore,
       u.pubname::text AS publication,
       pg_catalog.pg_has_role(u.pubowner, 'USAGE') AS publication_is_ours,
       (to_jsonb(pr) ->> 'prqual') IS NOT NULL OR (to_jsonb(pr) ->> 'prattrs') IS NOT NULL AS publication_is_partial,
       d.is_of_row_type
  FROM dependent d
 CROSS JOIN LATERAL pg_catalog.pg_identify_object(d.classid, d.objid, 0) AS i
  LEFT JOIN pg_catalog.pg_rewrite rw ON d.classid = 'pg_catalog.pg_rewrite'::regclass AND rw.oid = d.objid
  LEFT JOIN pg_catalog.pg_class rc ON rc.oid = rw.ev_class
  LEFT JOIN pg_catalog.pg_namespace rn ON rn.oid = rc.relnamespace
  LEFT JOIN pg_catalog.pg_class c ON d.classid = 'pg_catalog.pg_class'::regclass AND c.oid = d.objid
  LEFT JOIN pg_catalog.pg_inherits h ON h.inhrelid = c.oid AND h.inhparent = d.table_oid
  LEFT JOIN pg_catalog.pg_proc p ON d.classid = 'pg_catalog.pg_proc'::regclass AND p.oid = d.objid
  LEFT JOIN pg_catalog.pg_constraint k ON d.classid = 'pg_catalog.pg_constraint'::regclass AND k.oid = d.objid
  LEFT JOIN pg_catalog.pg_trigger g ON d.classid = 'pg_catalog.pg_trigger'::regclass AND g.oid = d.objid
  LEFT JOIN pg_catalog.pg_policy o ON d.classid = 'pg_catalog.pg_policy'::regclass AND o.oid = d.objid
  LEFT JOIN pg_catalog.pg_statistic_ext s ON d.classid = 'pg_catalog.pg_statistic_ext'::regclass AND s.oid = d.objid
  LEFT JOIN pg_catalog.pg_publication_rel pr ON d.classid = 'pg_catalog.pg_publication_rel'::regclass AND pr.oid = d.objid
  LEFT JOIN pg_catalog.pg_publication u ON u.oid = pr.prpubid
 ORDER BY d.table_oid, 3, 5
