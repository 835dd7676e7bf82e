-- name: heartbeat_beat
-- Count one further and say the same in a logical message of the same transaction, so that the stream carries it without
-- publishing the table.
WITH beat AS (
    UPDATE cdc.heartbeat SET count = count + 1, at = clock_timestamp() WHERE pipeline = %(pipeline)s::text
    RETURNING pipeline, count, at, incarnation
)
SELECT beat.pipeline, beat.count, beat.at, beat.incarnation,
       pg_logical_emit_message(true, %(prefix)s::text, row_to_json(beat)::text)
  FROM beat
