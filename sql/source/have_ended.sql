-- name: have_ended
-- Whether none of the transactions %(xids)s is under way any more, prepared ones included. Their ids have 32 bits, and are
-- compared as PostgreSQL compares them: what is less than half of all ids after the snapshot's end has not ended.
SELECT NOT EXISTS (
    SELECT
      FROM unnest(%(xids)s::int8[]) AS asked (xid)
     WHERE ((asked.xid - pg_snapshot_xmax(pg_current_snapshot())::text::int8) & 4294967295) < 2147483648
        OR asked.xid IN (SELECT running.xid::text::int8 & 4294967295
                           FROM pg_snapshot_xip(pg_current_snapshot()) AS running (xid)))
