-- name: published_parts
-- What publications send of each table: its columns, by publication, and the row filters. A publication without a filter
-- for a table sends all of its rows, whatever the others say. (Columns and filters are shown from PostgreSQL 15 on.)
SELECT t.schemaname || '.' || t.tablename,
       json_agg(json_build_array(t.pubname, to_jsonb(t) -> 'attnames') ORDER BY t.pubname) AS columns,
       CASE WHEN bool_and(to_jsonb(t) ->> 'rowfilter' IS NOT NULL)
            THEN string_agg(DISTINCT '(' || (to_jsonb(t) ->> 'rowfilter') || ')', ' OR ') END AS row_filter
  FROM pg_catalog.pg_publication_tables t
 WHERE t.pubname = ANY (%(names)s::text[])
 GROUP BY t.schemaname, t.tablename
