-- name: 0001_schema
-- What cdc keeps in a target: where it stands, who owns it, and the state of each of its tables. Never a row value.

CREATE TABLE cdc.target (
    pipeline text PRIMARY KEY,
    target text NOT NULL,
    state text NOT NULL DEFAULT 'new' CHECK (state IN ('new', 'loading', 'streaming', 'stopped', 'needs resync')),
    fence bigint NOT NULL DEFAULT 0,
    backend_pid integer,
    backend_start timestamptz,
    position pg_lsn,
    system_identifier text,
    timeline integer,
    slot text,
    incarnation uuid,
    consistent_at pg_lsn,
    transactions bigint NOT NULL DEFAULT 0,
    heartbeat_count bigint,
    heartbeat_at timestamptz,
    source_commit_at timestamptz,
    applied_at timestamptz,
    last_error text,
    last_error_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT pg_catalog.now(),
    CHECK ((position IS NULL) = (system_identifier IS NULL)),
    CHECK ((position IS NULL) = (timeline IS NULL)),
    CHECK ((position IS NULL) = (slot IS NULL)),
    CHECK ((position IS NULL) = (incarnation IS NULL))
)
-- One row, updated by every batch: a nearly empty page keeps its versions on that page (HOT), whatever autovacuum does.
WITH (fillfactor = 10, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_scale_factor = 0);

COMMENT ON TABLE cdc.target IS 'Where this database stands as a target of a pipeline, and who may write to it';
COMMENT ON COLUMN cdc.target.pipeline IS 'The pipeline, as its configuration names it';
COMMENT ON COLUMN cdc.target.target IS 'The name of this target in that configuration';
COMMENT ON COLUMN cdc.target.state IS 'new: never loaded; loading: a bootstrap is running or was interrupted; streaming; stopped: somebody has to act; needs resync: slot and position do not meet, it can only be loaded again';
COMMENT ON COLUMN cdc.target.fence IS 'Counts up with every take; only the worker that knows the present number may move the position';
COMMENT ON COLUMN cdc.target.backend_pid IS 'Process id of the owner''s session on this server; the next owner ends it first';
COMMENT ON COLUMN cdc.target.backend_start IS 'Start of that process, because process ids are used again';
COMMENT ON COLUMN cdc.target.position IS 'End LSN at the source up to which this database holds everything (tables with a position of their own excepted)';
COMMENT ON COLUMN cdc.target.system_identifier IS 'The source cluster that the position belongs to (IDENTIFY_SYSTEM)';
COMMENT ON COLUMN cdc.target.timeline IS 'The timeline of the source that the position belongs to';
COMMENT ON COLUMN cdc.target.slot IS 'The replication slot that the position belongs to';
COMMENT ON COLUMN cdc.target.incarnation IS 'The id that the source''s heartbeat row carried when this target was loaded';
COMMENT ON COLUMN cdc.target.consistent_at IS 'The cut-over: past this LSN the database shows the source exactly as it was at some commit';
COMMENT ON COLUMN cdc.target.transactions IS 'Source transactions applied since the target was loaded';
COMMENT ON COLUMN cdc.target.heartbeat_count IS 'The number of the last heartbeat that has arrived';
COMMENT ON COLUMN cdc.target.heartbeat_at IS 'When the source wrote that heartbeat, by the source''s clock; the lag is counted from here';
COMMENT ON COLUMN cdc.target.source_commit_at IS 'When the last applied transaction was committed, by the source''s clock';
COMMENT ON COLUMN cdc.target.applied_at IS 'When the position last moved, by this server''s clock';
COMMENT ON COLUMN cdc.target.last_error IS 'The last thing that went wrong, in one sentence, without values; NULL when it has passed';
COMMENT ON COLUMN cdc.target.last_error_at IS 'When that was, by this server''s clock';
COMMENT ON COLUMN cdc.target.created_at IS 'When cdc setup made this row';

CREATE TABLE cdc.target_table (
    pipeline text NOT NULL REFERENCES cdc.target ON DELETE CASCADE,
    source_schema text NOT NULL,
    source_table text NOT NULL,
    target_schema text NOT NULL,
    target_table text NOT NULL,
    state text NOT NULL CHECK (state IN ('copying', 'streaming', 'stopped')),
    position pg_lsn,
    consistent_from pg_lsn,
    reason text,
    mend text,
    sqlstate text,
    stopped_at timestamptz,
    inserted bigint NOT NULL DEFAULT 0,
    updated bigint NOT NULL DEFAULT 0,
    deleted bigint NOT NULL DEFAULT 0,
    truncated bigint NOT NULL DEFAULT 0,
    created_by_cdc boolean NOT NULL DEFAULT false,
    source_oid bigint,
    PRIMARY KEY (pipeline, source_schema, source_table),
    CHECK (state <> 'stopped' OR (reason IS NOT NULL AND position IS NOT NULL))
)
WITH (fillfactor = 50);

COMMENT ON TABLE cdc.target_table IS 'The state of each replicated table of this target';
COMMENT ON COLUMN cdc.target_table.pipeline IS 'The pipeline that the table belongs to';
COMMENT ON COLUMN cdc.target_table.source_schema IS 'Schema of the table at the source';
COMMENT ON COLUMN cdc.target_table.source_table IS 'Name of the table at the source';
COMMENT ON COLUMN cdc.target_table.target_schema IS 'Schema of the table here';
COMMENT ON COLUMN cdc.target_table.target_table IS 'Name of the table here';
COMMENT ON COLUMN cdc.target_table.state IS 'copying: its first load has not finished; streaming; stopped: it cannot go on until somebody acts, see reason and mend';
COMMENT ON COLUMN cdc.target_table.position IS 'Up to where this table holds everything, where that is not the target''s own position: ahead after its load, behind when it stopped';
COMMENT ON COLUMN cdc.target_table.consistent_from IS 'LSN of the snapshot that the table was loaded from';
COMMENT ON COLUMN cdc.target_table.reason IS 'Why the table stopped, in one sentence, without values';
COMMENT ON COLUMN cdc.target_table.mend IS 'The SQL or command that lets it go on, where there is one';
COMMENT ON COLUMN cdc.target_table.sqlstate IS 'The SQLSTATE that stopped it, where this server gave one';
COMMENT ON COLUMN cdc.target_table.stopped_at IS 'When it stopped, by this server''s clock';
COMMENT ON COLUMN cdc.target_table.inserted IS 'Rows inserted since the table was loaded';
COMMENT ON COLUMN cdc.target_table.updated IS 'Rows updated since the table was loaded';
COMMENT ON COLUMN cdc.target_table.deleted IS 'Rows deleted since the table was loaded';
COMMENT ON COLUMN cdc.target_table.truncated IS 'TRUNCATEs since the table was loaded';
COMMENT ON COLUMN cdc.target_table.source_oid IS 'Oid of the table at the source: a table that is renamed there keeps it, one that takes its name has another';
COMMENT ON COLUMN cdc.target_table.created_by_cdc IS 'Whether cdc created the table here; what it did not create it never drops';
