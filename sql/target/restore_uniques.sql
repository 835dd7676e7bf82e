-- name: restore_uniques
-- Everything that refuses a second row in these tables (schemas, names), partitions included: unique indexes of every
-- kind, with those of their columns that are plain and compared as the table compares them, and exclusion constraints,
-- of which no column is named because their operators decide.
SELECT n.nspname::text AS schema,
       c.relname::text AS name,
       x.relname::text AS index_name,
       CASE WHEN i.indisexclusion THEN '{}'::text[]
            ELSE ARRAY(SELECT a.attname::text
                         FROM unnest(i.indkey::int2[], i.indcollation::oid[]) WITH ORDINALITY AS k (attnum, coll, place)
                         JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
                        WHERE k.place <= i.indnkeyatts AND k.coll = a.attcollation)
        END AS columns
  FROM unnest($1::text[], $2::text[]) AS wanted (schema, name)
  JOIN pg_catalog.pg_namespace n ON n.nspname = wanted.schema
  JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = wanted.name
 CROSS JOIN LATERAL (SELECT c.oid UNION SELECT p.relid FROM pg_catalog.pg_partition_tree(c.oid) AS p) AS t (oid)
  JOIN pg_catalog.pg_index i ON i.indrelid = t.oid
  JOIN pg_catalog.pg_class x ON x.oid = i.indexrelid
 WHERE (i.indisunique OR i.indisexclusion) AND i.indislive
 ORDER BY 1, 2, 3
