-- name: partition_marks
-- Which leaves partitioned tables (oids; others are left out) have now, as one text each: it differs whenever they differ.
WITH RECURSIVE tree (root, relid, mark) AS (
    SELECT p.partrelid, p.partrelid, ''::text
      FROM pg_catalog.pg_partitioned_table p
     WHERE p.partrelid = ANY (%(roots)s::oid[])
    UNION ALL
    SELECT t.root, i.inhrelid, i.inhrelid::text || '.' || i.xmin::text || c.relpersistence::text
      FROM tree t
      JOIN pg_catalog.pg_inherits i ON i.inhparent = t.relid AND NOT i.inhdetachpending
      JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid AND c.relispartition
)
SELECT t.root::bigint, md5(string_agg(t.mark, ' ' ORDER BY t.mark))
  FROM tree t
 GROUP BY t.root
