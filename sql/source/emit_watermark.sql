-- name: emit_watermark
-- Write a mark into the WAL, as a transaction of its own: whoever meets it in the stream knows that every transaction
-- whose commit record stands before it has been streamed.
SELECT pg_logical_emit_message(true, %(prefix)s::text, %(content)s::text)
