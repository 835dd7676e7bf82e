-- name: resync_unique_indexes
-- Whether the table ($1) has a unique index or an exclusion constraint besides an index of exactly the columns $2: while
-- chunks are merged into it, values that have moved between rows would collide.
SELECT EXISTS (
    SELECT
      FROM pg_catalog.pg_index i
     WHERE i.indrelid = $1::text::regclass
       AND (i.indisunique OR i.indisexclusion)
       AND NOT (i.indpred IS NULL AND i.indexprs IS NULL
                AND (SELECT array_agg(a.attname::text ORDER BY a.attname::text COLLATE "C")
                       FROM unnest((i.indkey::int2[])[0:i.indnkeyatts - 1]) AS u (attnum)
                       JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = u.attnum)
                   = (SELECT array_agg(n ORDER BY n COLLATE "C") FROM unnest($2::text[]) AS k (n)))
)
