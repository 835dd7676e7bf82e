-- name: 0009_advance
-- The same as before, except that now and then the row is found by its key. Reading it by its place never prunes its
-- page, so that a new page was begun every forty batches, up to the thousand dead versions that autovacuum waited for
-- (8 MB in an hour or two, for a table of one row). Reading it by its key does, one time in eight on the first page:
-- the table keeps a page or two. Where it has grown nevertheless, a long report keeps the versions, and the walk along
-- them is as long as there are pages: it is taken the less often, so that it costs a batch the same on average.

ALTER TABLE cdc.target SET (autovacuum_vacuum_threshold = 50);

CREATE OR REPLACE FUNCTION cdc.advance(
    of_pipeline text,
    my_fence bigint,
    from_position pg_lsn,
    to_position pg_lsn,
    transaction_count bigint DEFAULT 0,
    last_commit_at timestamptz DEFAULT NULL,
    last_heartbeat_count bigint DEFAULT NULL,
    last_heartbeat_at timestamptz DEFAULT NULL
) RETURNS void
LANGUAGE plpgsql
SECURITY INVOKER
SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan
AS $function$
DECLARE
    place tid := nullif(current_setting('cdc.target_row', true), '')::tid;
BEGIN
    IF place IS NOT NULL AND random() * (8 + (place::text::point)[0]) > 1 THEN
        UPDATE cdc.target t
           SET position = to_position,
               transactions = t.transactions + transaction_count,
               source_commit_at = coalesce(last_commit_at, t.source_commit_at),
               heartbeat_count = coalesce(last_heartbeat_count, t.heartbeat_count),
               heartbeat_at = coalesce(last_heartbeat_at, t.heartbeat_at),
               applied_at = clock_timestamp()
         WHERE t.ctid = place
           AND t.pipeline = of_pipeline AND t.fence = my_fence AND t.position = from_position
        RETURNING t.ctid INTO place;
    END IF;
    IF NOT FOUND THEN
        UPDATE cdc.target t
           SET position = to_position,
               transactions = t.transactions + transaction_count,
               source_commit_at = coalesce(last_commit_at, t.source_commit_at),
               heartbeat_count = coalesce(last_heartbeat_count, t.heartbeat_count),
               heartbeat_at = coalesce(last_heartbeat_at, t.heartbeat_at),
               applied_at = clock_timestamp()
         WHERE t.pipeline = of_pipeline AND t.fence = my_fence AND t.position = from_position
        RETURNING t.ctid INTO place;
        IF NOT FOUND THEN
            RAISE EXCEPTION 'the target is not ours any more, or its position is not where this batch starts'
                USING ERRCODE = 'CDC01';
        END IF;
    END IF;
    PERFORM set_config('cdc.target_row', place::text, false);
END
$function$;
