-- name: object_names
-- The names of objects (parallel arrays: a reg* type, an oid), qualified outside pg_catalog: the session's search path
-- holds nothing else. A function or an operator comes with its arguments, because its name alone may mean several. What
-- does not exist any more is its number.
SELECT w.kind, w.oid::bigint,
       CASE w.kind
            WHEN 'regclass' THEN w.oid::regclass::text
            WHEN 'regtype' THEN w.oid::regtype::text
            WHEN 'regproc' THEN w.oid::regprocedure::text
            WHEN 'regprocedure' THEN w.oid::regprocedure::text
            WHEN 'regoper' THEN w.oid::regoperator::text
            WHEN 'regoperator' THEN w.oid::regoperator::text
            WHEN 'regnamespace' THEN w.oid::regnamespace::text
            WHEN 'regrole' THEN w.oid::regrole::text
            WHEN 'regcollation' THEN w.oid::regcollation::text
            WHEN 'regconfig' THEN w.oid::regconfig::text
            WHEN 'regdictionary' THEN w.oid::regdictionary::text
       END AS name
  FROM unnest(%(kinds)s::text[], %(oids)s::oid[]) AS w (kind, oid)
