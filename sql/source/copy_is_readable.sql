-- name: copy_is_readable
-- Whether this transaction's snapshot sees the rows of the table: false after a rewrite or TRUNCATE that is younger than
-- the snapshot (pg_class is read through the snapshot, pg_relation_filenode is not), no row for a table that is younger. Of
-- a partitioned table that is asked of each leaf; and they have to be those of the snapshot, because FROM reads those of
-- now, and those that the caller expects, each as oid and mark of its ATTACH (NULL: whichever they are). Names in a
-- statement mean columns of now, too: each column of the snapshot must have its name now (pg_identify_object_as_address
-- does not go by the snapshot), and those that the caller expects their numbers (NULL: whichever they have).
WITH RECURSIVE tree (relid, attachment) AS (
    SELECT c.oid, ''::text
      FROM pg_catalog.pg_class c
     WHERE c.oid = %(table)s::regclass
    UNION ALL
    SELECT i.inhrelid, i.xmin::text || '/' || t.attachment
      FROM tree t
      JOIN pg_catalog.pg_inherits i ON i.inhparent = t.relid AND NOT i.inhdetachpending
      JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid AND c.relispartition
), leaves AS (
    SELECT c.oid, c.oid::text || ' ' || t.attachment AS mark, c.relfilenode = pg_catalog.pg_relation_filenode(c.oid) AS is_same
      FROM tree t
      JOIN pg_catalog.pg_class c ON c.oid = t.relid AND c.relkind <> 'p'
)
SELECT NOT EXISTS (SELECT FROM leaves l WHERE l.is_same IS NOT TRUE)
       AND (c.relkind <> 'p'
            OR (ARRAY(SELECT l.oid FROM leaves l ORDER BY l.oid)
                    = ARRAY(SELECT n.relid::oid FROM pg_catalog.pg_partition_tree(c.oid) n WHERE n.isleaf ORDER BY n.relid::oid)
                AND coalesce(%(leaves)s::text[] = ARRAY(SELECT l.mark FROM leaves l ORDER BY l.mark COLLATE "C"), true)))
       AND NOT EXISTS (SELECT FROM pg_catalog.pg_attribute a,
                              pg_catalog.pg_identify_object_as_address('pg_catalog.pg_class'::regclass, c.oid, a.attnum) i
                        WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
                          AND i.object_names[3] IS DISTINCT FROM a.attname::text)
       AND NOT EXISTS (SELECT FROM unnest(%(names)s::text[], %(numbers)s::int4[]) AS w (name, number)
                        WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_attribute a
                                           WHERE a.attrelid = c.oid AND a.attnum = w.number AND a.attname = w.name
                                             AND NOT a.attisdropped))
  FROM pg_catalog.pg_class c
 WHERE c.oid = %(table)s::regclass
