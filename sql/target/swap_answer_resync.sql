-- name: swap_answer_resync
-- Who asked for these tables (source schemas $3 and names $4) to be read again (cdc resync) has got them: from where the
-- generation ($2, a key) stands on each is exactly the source's. What is left to do is said by the command itself.
UPDATE cdc.resync r
   SET consistent_from = g.position
  FROM unnest($3::text[], $4::text[]) AS w (source_schema, source_table), cdc.target g
 WHERE r.pipeline = $1 AND r.source_schema = w.source_schema AND r.source_table = w.source_table
   AND r.state = 'shadow' AND g.pipeline = $2
