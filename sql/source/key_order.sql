-- name: key_order
-- The columns of an index of the table (%(table)s, an oid) that holds exactly the columns %(columns)s of every row, in
-- the ascending order of their types: reading by it needs no sorting.
SELECT ARRAY(SELECT a.attname::text
               FROM unnest((i.indkey::int2[])[0:i.indnkeyatts - 1]) WITH ORDINALITY AS u (attnum, place)
               JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = u.attnum
              ORDER BY u.place) AS columns
  FROM pg_index i
  JOIN pg_class c ON c.oid = i.indexrelid
  JOIN pg_am m ON m.oid = c.relam
 WHERE i.indrelid = %(table)s::oid
   AND m.amname = 'btree' AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL
   AND i.indnkeyatts = cardinality(%(columns)s::text[])
   AND NOT EXISTS (SELECT FROM unnest(i.indoption::int2[]) AS o (option) WHERE o.option <> 0)
   AND NOT EXISTS (SELECT
                     FROM unnest((i.indkey::int2[])[0:i.indnkeyatts - 1]) AS u (attnum)
                     JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = u.attnum
                    WHERE a.attname::text <> ALL (%(columns)s::text[]))
 ORDER BY i.indisprimary DESC, i.indexrelid
 LIMIT 1
