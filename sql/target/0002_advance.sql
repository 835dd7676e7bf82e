-- name: 0002_advance
-- The end of every target transaction: moves the position, or raises SQLSTATE CDC01 so that the COMMIT behind it in the
-- same query string is never reached. Called as SELECT cdc.advance(…); COMMIT in one round trip.
--
-- The row is found by the place where this session last left it. A long report on the target keeps every version of
-- the row alive, and an index makes each batch walk all of them (1.3 ms per 20,000); the place is one read. It is kept in a setting of
-- the session, which a rollback sets back together with the row.

CREATE FUNCTION cdc.advance(
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
    IF place IS NOT NULL THEN
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
    IF place IS NULL OR NOT FOUND THEN
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

COMMENT ON FUNCTION cdc.advance IS 'Moves the position of a target at the end of a batch, for its present owner only; otherwise raises CDC01';
