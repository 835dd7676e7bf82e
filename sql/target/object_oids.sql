-- name: object_oids
-- The oids of the objects whose names are in the temporary table cdc_objects; `found` is NULL where there is none.
-- Names are as the source's reg* types print them under an empty search path: qualified outside pg_catalog. A number
-- stands for an object that the source does not have any more: it is its own oid, but only where this server prints it
-- as a number, too, because no object here has it.
SELECT o.kind, o.oid,
       CASE WHEN o.name ~ '^[0-9]+$' THEN
       (CASE WHEN o.name = CASE o.kind
             WHEN 'regclass' THEN o.oid::pg_catalog.oid::pg_catalog.regclass::text
             WHEN 'regtype' THEN o.oid::pg_catalog.oid::pg_catalog.regtype::text
             WHEN 'regproc' THEN o.oid::pg_catalog.oid::pg_catalog.regprocedure::text
             WHEN 'regprocedure' THEN o.oid::pg_catalog.oid::pg_catalog.regprocedure::text
             WHEN 'regoper' THEN o.oid::pg_catalog.oid::pg_catalog.regoperator::text
             WHEN 'regoperator' THEN o.oid::pg_catalog.oid::pg_catalog.regoperator::text
             WHEN 'regnamespace' THEN o.oid::pg_catalog.oid::pg_catalog.regnamespace::text
             WHEN 'regrole' THEN o.oid::pg_catalog.oid::pg_catalog.regrole::text
             WHEN 'regcollation' THEN o.oid::pg_catalog.oid::pg_catalog.regcollation::text
             WHEN 'regconfig' THEN o.oid::pg_catalog.oid::pg_catalog.regconfig::text
             WHEN 'regdictionary' THEN o.oid::pg_catalog.oid::pg_catalog.regdictionary::text
        END THEN o.oid END)
       ELSE
       (CASE o.kind
             WHEN 'regclass' THEN pg_catalog.to_regclass(o.name)::pg_catalog.oid
             WHEN 'regtype' THEN pg_catalog.to_regtype(o.name)::pg_catalog.oid
             WHEN 'regproc' THEN pg_catalog.to_regprocedure(o.name)::pg_catalog.oid
             WHEN 'regprocedure' THEN pg_catalog.to_regprocedure(o.name)::pg_catalog.oid
             WHEN 'regoper' THEN pg_catalog.to_regoperator(o.name)::pg_catalog.oid
             WHEN 'regoperator' THEN pg_catalog.to_regoperator(o.name)::pg_catalog.oid
             WHEN 'regnamespace' THEN pg_catalog.to_regnamespace(o.name)::pg_catalog.oid
             WHEN 'regrole' THEN pg_catalog.to_regrole(o.name)::pg_catalog.oid
             WHEN 'regcollation' THEN pg_catalog.to_regcollation(o.name)::pg_catalog.oid
             WHEN 'regconfig' THEN (
                  SELECT c.oid FROM pg_catalog.pg_ts_config c
                   WHERE c.cfgname = p.name AND c.cfgnamespace = pg_catalog.to_regnamespace(pg_catalog.quote_ident(p.schema)))
             WHEN 'regdictionary' THEN (
                  SELECT d.oid FROM pg_catalog.pg_ts_dict d
                   WHERE d.dictname = p.name AND d.dictnamespace = pg_catalog.to_regnamespace(pg_catalog.quote_ident(p.schema)))
        END)::pg_catalog.int8
       END AS found
  FROM pg_temp.cdc_objects o
  LEFT JOIN LATERAL (
        SELECT i.parts[pg_catalog.cardinality(i.parts)] AS name,
               CASE WHEN pg_catalog.cardinality(i.parts) = 1 THEN 'pg_catalog' ELSE i.parts[1] END AS schema
          FROM (SELECT CASE WHEN o.kind IN ('regconfig', 'regdictionary') AND o.name !~ '^[0-9]+$'
                          THEN pg_catalog.parse_ident(o.name) END) AS i (parts)
  ) AS p ON true
