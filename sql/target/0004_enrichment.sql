-- name: 0004_enrichment
-- What of the enrichment (the SQL files of a target) this database has, and what is refreshed because of it.

CREATE TABLE cdc.enrichment (
    pipeline text NOT NULL REFERENCES cdc.target ON DELETE CASCADE,
    file text NOT NULL,
    digest text NOT NULL,
    refreshes text[] NOT NULL,
    done text[] NOT NULL DEFAULT '{}',
    started_at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    applied_at timestamptz,
    PRIMARY KEY (pipeline, file)
);
COMMENT ON TABLE cdc.enrichment IS 'The files of the enrichment that were run here';
COMMENT ON COLUMN cdc.enrichment.pipeline IS 'The generation that they were run for (cdc.target.pipeline)';
COMMENT ON COLUMN cdc.enrichment.file IS 'Name of the file; files run in the order of their names';
COMMENT ON COLUMN cdc.enrichment.digest IS 'SHA-256 of the file as it was run';
COMMENT ON COLUMN cdc.enrichment.refreshes IS 'Materialized views (schema.name) that are refreshed on schedule';
COMMENT ON COLUMN cdc.enrichment.done IS 'SHA-256 of each of its statements that has been run: one that was interrupted goes on behind them';
COMMENT ON COLUMN cdc.enrichment.started_at IS 'When it was begun, by this server''s clock';
COMMENT ON COLUMN cdc.enrichment.applied_at IS 'When it was done, by this server''s clock; NULL while it runs, and when it failed or was interrupted';
