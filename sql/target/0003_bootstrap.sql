-- name: 0003_bootstrap
-- What a bootstrap from a backup has to remember so that it can go on after it was killed, and how long each of its
-- steps took (cdc report). Never a row value.

ALTER TABLE cdc.target
    ADD COLUMN cut_over_heartbeat bigint,
    ADD COLUMN consistent_time timestamptz,
    ADD COLUMN only_tables text[];
COMMENT ON COLUMN cdc.target.cut_over_heartbeat IS 'The heartbeat with which this target becomes exactly consistent; NULL when it is, or was not loaded from a backup';
COMMENT ON COLUMN cdc.target.consistent_time IS 'When the source was as it is at consistent_at, by the source''s clock';
COMMENT ON COLUMN cdc.target.only_tables IS 'For a generation of some tables only: their names at the source; NULL for one of all';

ALTER TABLE cdc.target_table
    DROP CONSTRAINT target_table_state_check,
    ADD CONSTRAINT target_table_state_check CHECK (state IN ('copying', 'overlap', 'streaming', 'stopped')),
    ADD COLUMN source_filenode bigint,
    ADD COLUMN source_attributes integer,
    ADD COLUMN stopped_in_overlap boolean NOT NULL DEFAULT false;
COMMENT ON COLUMN cdc.target_table.state IS 'copying: its first load has not finished; overlap: its rows are there and changes that they may hold already are streamed over them; streaming; stopped: it cannot go on until somebody acts, see reason and mend';
COMMENT ON COLUMN cdc.target_table.source_filenode IS 'pg_relation_filenode of the table at the source before the backup that it is loaded from: another one afterwards means that the backup may hold nothing of it';
COMMENT ON COLUMN cdc.target_table.source_attributes IS 'How many columns the table had there at that time, dropped ones included: a column that was dropped and added again is another one';
COMMENT ON COLUMN cdc.target_table.stopped_in_overlap IS 'Whether a stopped table was in overlap, and goes on in it';

CREATE TABLE cdc.backup_load (
    pipeline text PRIMARY KEY REFERENCES cdc.target ON DELETE CASCADE,
    slot text NOT NULL,
    first_heartbeat bigint NOT NULL,
    asked_at timestamptz NOT NULL,
    backup text,
    heartbeat bigint
);
COMMENT ON TABLE cdc.backup_load IS 'The backup that a target is being loaded from';
COMMENT ON COLUMN cdc.backup_load.pipeline IS 'The generation that is being loaded (cdc.target.pipeline)';
COMMENT ON COLUMN cdc.backup_load.slot IS 'The slot whose stream is joined to the backup';
COMMENT ON COLUMN cdc.backup_load.first_heartbeat IS 'The heartbeat that the backup has to hold, or a later one';
COMMENT ON COLUMN cdc.backup_load.asked_at IS 'When that heartbeat was written, by the source''s clock';
COMMENT ON COLUMN cdc.backup_load.backup IS 'The provider''s id of the backup, once there is one';
COMMENT ON COLUMN cdc.backup_load.heartbeat IS 'The last heartbeat that was found in the backup';

CREATE TABLE cdc.bootstrap_run (
    run bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    pipeline text NOT NULL,
    target text NOT NULL,
    origin text NOT NULL CHECK (origin IN ('backup', 'live', 'none', 'resync')),
    started_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    finished_at timestamptz,
    outcome text
);
COMMENT ON TABLE cdc.bootstrap_run IS 'The runs of cdc bootstrap and cdc resync into this database; one that was killed has no end';
COMMENT ON COLUMN cdc.bootstrap_run.run IS 'Counts up';
COMMENT ON COLUMN cdc.bootstrap_run.pipeline IS 'The pipeline, as its configuration names it';
COMMENT ON COLUMN cdc.bootstrap_run.target IS 'The name of this target in that configuration';
COMMENT ON COLUMN cdc.bootstrap_run.origin IS 'Where the rows came from';
COMMENT ON COLUMN cdc.bootstrap_run.started_at IS 'By this server''s clock';
COMMENT ON COLUMN cdc.bootstrap_run.finished_at IS 'By this server''s clock; NULL while it runs, and when it was killed';
COMMENT ON COLUMN cdc.bootstrap_run.outcome IS 'done, or in one sentence without values what ended it';

CREATE TABLE cdc.bootstrap_step (
    step bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    run bigint NOT NULL REFERENCES cdc.bootstrap_run ON DELETE CASCADE,
    kind text NOT NULL,
    object text,
    started_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    finished_at timestamptz,
    row_count bigint,
    size_bytes bigint
);
CREATE INDEX bootstrap_step_run ON cdc.bootstrap_step (run);
COMMENT ON TABLE cdc.bootstrap_step IS 'What those runs did, step by step';
COMMENT ON COLUMN cdc.bootstrap_step.step IS 'Counts up';
COMMENT ON COLUMN cdc.bootstrap_step.run IS 'The run that it belongs to';
COMMENT ON COLUMN cdc.bootstrap_step.kind IS 'wait, backup, download, restore, table, copy, catch-up, primary key, unique index, index, check, foreign key, comment, view, sequence, enrichment, swap';
COMMENT ON COLUMN cdc.bootstrap_step.object IS 'What it concerned: a table, an index, a file; NULL for the whole';
COMMENT ON COLUMN cdc.bootstrap_step.started_at IS 'By this server''s clock';
COMMENT ON COLUMN cdc.bootstrap_step.finished_at IS 'By this server''s clock; NULL while it runs, and when it was interrupted';
COMMENT ON COLUMN cdc.bootstrap_step.row_count IS 'Rows that it moved, where it moves rows';
COMMENT ON COLUMN cdc.bootstrap_step.size_bytes IS 'Bytes that it moved, where it moves bytes';
