-- name: published
-- Every table that any of the publications sends, as a member, through its schema, or as one of all tables, and what is
-- sent of it by all of them together.
SELECT t.schemaname || '.' || t.tablename,
       array_remove(ARRAY[CASE WHEN bool_or(p.pubinsert) THEN 'insert' END,
                          CASE WHEN bool_or(p.pubupdate) THEN 'update' END,
                          CASE WHEN bool_or(p.pubdelete) THEN 'delete' END,
                          CASE WHEN bool_or(p.pubtruncate) THEN 'truncate' END], NULL) AS operations
  FROM pg_catalog.pg_publication_tables t
  JOIN pg_catalog.pg_publication p ON p.pubname = t.pubname
 WHERE t.pubname = ANY (%(names)s::text[])
 GROUP BY t.schemaname, t.tablename
 ORDER BY t.schemaname, t.tablename
