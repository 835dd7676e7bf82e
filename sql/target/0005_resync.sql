-- name: 0005_resync
-- Requests to read one table again while everything streams (cdc resync), and how far each has come. The rows under way,
-- the bounds of what is merged and the keys that have to be read again stand in tables of their own while it lasts:
-- cdc.resync_<request>_rows, _bound and _again. No row value is in this one.

CREATE TABLE cdc.resync (
    request bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    pipeline text NOT NULL REFERENCES cdc.target ON DELETE CASCADE,
    source_schema text NOT NULL,
    source_table text NOT NULL,
    state text NOT NULL DEFAULT 'asked'
        CHECK (state IN ('asked', 'waiting', 'reading', 'sweeping', 'copying', 'finishing', 'shadow', 'done', 'failed')),
    way text CHECK (way IN ('in place', 'whole', 'shadow')),
    reason text,
    mend text,
    says text,
    max_rows_per_second bigint CHECK (max_rows_per_second > 0),
    asked_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    began_at timestamptz,
    finished_at timestamptz,
    source_oid bigint,
    near_xid bigint,
    key_form text,
    chunk_count bigint NOT NULL DEFAULT 0,
    row_count bigint NOT NULL DEFAULT 0,
    estimated_rows bigint,
    sweep_after bigint NOT NULL DEFAULT 0,
    consistent_from pg_lsn,
    run bigint REFERENCES cdc.bootstrap_run ON DELETE SET NULL,
    CHECK ((finished_at IS NOT NULL) = (state IN ('done', 'failed')))
);
CREATE UNIQUE INDEX resync_open ON cdc.resync (pipeline, source_schema, source_table) WHERE finished_at IS NULL;
COMMENT ON TABLE cdc.resync IS 'Requests to read one table again (cdc resync); the worker serves them one after another';
COMMENT ON COLUMN cdc.resync.request IS 'Counts up';
COMMENT ON COLUMN cdc.resync.pipeline IS 'The pipeline, as its configuration names it';
COMMENT ON COLUMN cdc.resync.source_schema IS 'Schema of the table at the source';
COMMENT ON COLUMN cdc.resync.source_table IS 'Name of the table at the source';
COMMENT ON COLUMN cdc.resync.state IS 'asked; waiting: for transactions that began before; reading: in chunks, in the order of the key; sweeping: rows that have to be read once more; copying: the whole table; finishing: its other indexes; shadow: cdc resync rebuilds it beside; done; failed, see reason and mend';
COMMENT ON COLUMN cdc.resync.way IS 'in place: in chunks that are merged; whole: from one snapshot, replaced in one transaction; shadow: built beside and swapped in';
COMMENT ON COLUMN cdc.resync.reason IS 'Why it is done that way, or why it failed, in one sentence without values';
COMMENT ON COLUMN cdc.resync.mend IS 'The SQL or command that helps, where there is one';
COMMENT ON COLUMN cdc.resync.says IS 'What it waits for now, in one sentence without values';
COMMENT ON COLUMN cdc.resync.max_rows_per_second IS 'How fast the source may be read; NULL: as fast as it goes';
COMMENT ON COLUMN cdc.resync.asked_at IS 'By this server''s clock';
COMMENT ON COLUMN cdc.resync.began_at IS 'When a worker took it up, by this server''s clock';
COMMENT ON COLUMN cdc.resync.finished_at IS 'By this server''s clock; NULL while it is open';
COMMENT ON COLUMN cdc.resync.source_oid IS 'Oid of the table at the source: another one under its name is another table';
COMMENT ON COLUMN cdc.resync.near_xid IS 'A transaction id of the source, 64 bits wide, from when it began: the stream sends 32 bits only';
COMMENT ON COLUMN cdc.resync.key_form IS 'Columns and types of the key in the stream';
COMMENT ON COLUMN cdc.resync.chunk_count IS 'Chunks that have been merged';
COMMENT ON COLUMN cdc.resync.row_count IS 'Rows that have been read and merged';
COMMENT ON COLUMN cdc.resync.estimated_rows IS 'Rows of the table by the source''s statistics, for the progress';
COMMENT ON COLUMN cdc.resync.sweep_after IS 'The last row to be read once more when all ranges had been merged';
COMMENT ON COLUMN cdc.resync.consistent_from IS 'The LSN from which on the table was exactly the source''s';
COMMENT ON COLUMN cdc.resync.run IS 'The run in cdc.bootstrap_run that cdc report shows';
