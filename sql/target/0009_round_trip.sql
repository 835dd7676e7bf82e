-- name: 0009_round_trip
-- What every batch asks of a target, for less.
--
-- cdc.table_version names the catalog rows that describe a table: any DDL on its columns, indexes and triggers gives
-- another version. It reads catalogs and is declared IMMUTABLE nevertheless, for one use: in a prepared statement with a
-- regclass constant it is evaluated while the statement is planned, and PostgreSQL makes a plan anew as soon as anything
-- about a table that it names has changed (src/backend/utils/cache/plancache.c). So a session that executes
-- `SELECT 1 / (CASE WHEN cdc.table_version('public.t'::regclass) = '…' THEN 1 ELSE 0 END)` in every batch reads the
-- catalogs only after a change, and pays for a constant otherwise. Do not use it in an index or a constraint.
--
-- cdc.advance is the same as before, except that now and then the row is found by its key. Reading it by its place never
-- prunes its page, so that a new page was begun every forty batches, up to the thousand dead versions that autovacuum
-- waited for (8 MB in an hour or two, for a table of one row). Reading it by its key does, one time in eight on the first
-- page: the table keeps a page or two. Where it has grown nevertheless, a long report keeps the versions, and the walk
-- along them is as long as there are pages: it is taken the less often, so that it costs a batch the same on average.

CREATE FUNCTION cdc.table_version(of_table regclass)
RETURNS text
LANGUAGE plpgsql
IMMUTABLE
SECURITY INVOKER
SET search_path = pg_catalog, pg_temp
AS $function$
BEGIN
    RETURN coalesce(
        of_table::oid
        || ARRAY(SELECT a.xmin FROM pg_attribute a WHERE a.attrelid = of_table AND a.attnum > 0 ORDER BY a.attnum)::text
        || ARRAY(SELECT i.xmin FROM pg_index i WHERE i.indrelid = of_table ORDER BY i.indexrelid)::text
        || ARRAY(SELECT t.xmin FROM pg_trigger t WHERE t.tgrelid = of_table ORDER BY t.oid)::text,
        'none'
    );
END
$function$;

COMMENT ON FUNCTION cdc.table_version IS 'Which catalog rows describe a table now: their transaction ids. For prepared statements of cdc only, see its migration';

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
