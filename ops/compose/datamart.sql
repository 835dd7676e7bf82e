-- The datamart of docker-compose.yml, as its owner made it: cdc only writes rows.
CREATE SCHEMA maddo;
CREATE TABLE maddo.pole_emploi_sendings (
    id bigint NOT NULL,
    payload json,
    created_at timestamptz
);
CREATE INDEX ON maddo.pole_emploi_sendings (created_at);
