-- name: leaves
-- The leaves of partitioned tables (oids), however deep. attachment tells one ATTACH from another: the transactions that
-- wrote the rows of pg_inherits on the way to the root. is_born: each table on that way was created as a partition, in one
-- statement (ATTACH writes the descriptions of all columns anew, CREATE TABLE … PARTITION OF leaves one as it was made).
-- bound: a condition for exactly the rows of this leaf that another server understands alike; not for hash partitions,
-- default partitions (it changes with their siblings), ranges of types that servers may order differently, and lists by
-- an expression or by a collation that has other texts equal.
-- Bounds and sizes only with %(is_measured)s: asking for them waits for DDL that is running on the leaf.
-- parts: the columns that the tables on that way are partitioned by, those of expressions among them (such a column depends
-- on its table as a whole).
WITH RECURSIVE tree (root, relid, attachment, is_born, is_bounded, parts) AS (
    SELECT r.oid, r.oid, ''::text, true, true, '{}'::text[] COLLATE "C"
      FROM unnest(%(roots)s::oid[]) AS r (oid)
    UNION ALL
    SELECT t.root, i.inhrelid, i.xmin::text || '/' || t.attachment,
           t.is_born AND EXISTS (
               SELECT
                 FROM pg_catalog.pg_attribute made
                 JOIN pg_catalog.pg_attribute a ON a.attrelid = made.attrelid AND a.attnum > 0
                WHERE made.attrelid = i.inhrelid AND made.attnum = -1 AND made.xmin::text = i.xmin::text
                  AND a.xmin::text = made.xmin::text AND a.cmin::text = made.cmin::text),
           t.is_bounded AND p.partstrat IN ('l', 'r') AND p.partdefid <> i.inhrelid
               AND ((p.partstrat = 'l'
                     AND NOT 0 = ANY (p.partattrs::int2[])
                     AND NOT EXISTS (SELECT
                                       FROM pg_catalog.pg_collation l
                                      WHERE l.oid = ANY (p.partcollation::oid[]) AND NOT l.collisdeterministic))
                    OR (NOT EXISTS (SELECT FROM unnest(p.partcollation::oid[]) AS k (collation_oid) WHERE k.collation_oid <> 0)
                        AND NOT EXISTS (
                            SELECT
                              FROM unnest(p.partattrs::int2[]) AS k (attnum)
                              LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid = p.partrelid AND a.attnum = k.attnum AND k.attnum > 0
                              LEFT JOIN pg_catalog.pg_type y ON y.oid = a.atttypid AND y.typtype = 'b'
                               AND y.typnamespace = 'pg_catalog'::regnamespace
                             WHERE y.oid IS NULL))),
           t.parts || ARRAY(SELECT a.attname::text COLLATE "C"
                              FROM pg_catalog.pg_depend d
                              JOIN pg_catalog.pg_attribute a ON a.attrelid = d.objid AND a.attnum = d.objsubid
                             WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = p.partrelid AND d.objsubid > 0
                               AND d.refclassid = d.classid AND d.refobjid = d.objid AND d.refobjsubid = 0 AND d.deptype = 'i'
                             GROUP BY a.attname ORDER BY a.attname)
      FROM tree t
      JOIN pg_catalog.pg_partitioned_table p ON p.partrelid = t.relid
      JOIN pg_catalog.pg_inherits i ON i.inhparent = t.relid AND NOT i.inhdetachpending
      JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid AND c.relispartition
)
SELECT t.root::bigint, t.parts, c.oid::bigint, n.nspname::text, c.relname::text, t.attachment,
       t.is_born AND c.relfilenode = c.oid AS is_born,
       CASE WHEN %(is_measured)s AND t.is_bounded AND c.relkind = 'r' THEN pg_get_partition_constraintdef(c.oid) END AS bound,
       c.relkind::text, c.relpersistence::text, c.relreplident::text,
       CASE WHEN %(is_measured)s THEN coalesce(pg_table_size(c.oid), 0)::bigint ELSE 0 END AS bytes,
       CASE WHEN %(is_measured)s THEN coalesce(pg_relation_size(c.oid), 0)::bigint / current_setting('block_size')::bigint
            ELSE 0 END AS pages,
       ARRAY(SELECT a.attname::text
               FROM pg_catalog.pg_index x
               JOIN pg_catalog.pg_attribute a
                 ON a.attrelid = x.indrelid AND a.attnum = ANY ((x.indkey::int2[])[0:x.indnkeyatts - 1])
              WHERE x.indrelid = c.oid AND x.indislive AND x.indisvalid AND x.indisunique AND x.indimmediate AND x.indpred IS NULL
                AND NOT EXISTS (SELECT FROM pg_catalog.pg_attribute g
                                 WHERE g.attrelid = c.oid AND g.attnum = ANY ((x.indkey::int2[])[0:x.indnkeyatts - 1])
                                   AND g.attgenerated <> '')
                AND ((c.relreplident = 'd' AND x.indisprimary) OR (c.relreplident = 'i' AND x.indisreplident))
              ORDER BY a.attname) AS key,
       c.relreplident = 'f' AND current_setting('server_version_num')::int >= 180000
           AND EXISTS (SELECT FROM pg_catalog.pg_attribute a
                        WHERE a.attrelid = c.oid AND a.attgenerated <> '' AND NOT a.attisdropped) AS lacks_generated
  FROM tree t
  JOIN pg_catalog.pg_class c ON c.oid = t.relid AND c.relkind <> 'p'
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 ORDER BY t.root, n.nspname, c.relname
