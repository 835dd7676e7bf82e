-- name: column_origins
-- How the columns of tables came to be. The value that ADD COLUMN gave to the rows that were there stands in an array of
-- its own, whose text form is parsed here (an array with another delimiter than a comma is taken for not known). A table
-- that was never rewritten still has the file that it was created with. A publication of somebody else (those named) may
-- list columns of a table, of its partitions or of what it is a partition of, from PostgreSQL 15 on.
SELECT c.oid::bigint, a.attname::text,
       CASE WHEN a.atthasmissing AND t.typdelim = ',' THEN (a.attmissingval::text::text[])[1] END AS filled_with,
       CASE WHEN a.atthasmissing THEN t.typdelim <> ','
            ELSE (a.atthasdef OR a.attidentity <> '') AND pg_relation_filenode(c.oid) IS DISTINCT FROM c.oid
        END AS may_be_filled,
       EXISTS (SELECT FROM pg_catalog.pg_attribute d
                WHERE d.attrelid = c.oid AND d.attisdropped AND d.attnum > 0 AND d.attnum < a.attnum) AS is_behind_dropped,
       coalesce(theirs.have_list, false) AS is_listed,
       theirs.have_list IS NOT NULL AND current_setting('server_version_num')::int >= 150000
           OR a.attgenerated <> '' AS may_be_unlisted
  FROM pg_catalog.pg_class c
  JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
  JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
  LEFT JOIN LATERAL (SELECT bool_or(to_jsonb(r) ->> 'prattrs' IS NOT NULL) AS have_list
                       FROM pg_catalog.pg_publication_rel r
                       JOIN pg_catalog.pg_publication p ON p.oid = r.prpubid
                      WHERE p.pubname = ANY (%(publications)s)
                        AND (r.prrelid = c.oid
                             OR r.prrelid IN (SELECT relid FROM pg_partition_ancestors(c.oid) AS a (relid))
                             OR r.prrelid IN (SELECT relid FROM pg_partition_tree(c.oid)))) theirs ON true
 WHERE c.oid = ANY (%(tables)s::oid[])
