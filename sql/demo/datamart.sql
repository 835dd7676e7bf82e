-- name: datamart
-- The tables of the demo's datamart, as their owner would create them: other names, orders and types, and no keys.

CREATE SCHEMA maddo;

CREATE TABLE maddo.pole_emploi_sendings (
    created_at timestamptz,
    payload json,
    id bigint NOT NULL,
    provenance text NOT NULL DEFAULT 'replicated'
);

CREATE TABLE maddo.campaigns (
    label varchar,
    organization_id integer,
    code text,
    campaign_id integer NOT NULL
);
CREATE INDEX campaigns_by_organization ON maddo.campaigns (organization_id);

CREATE TABLE maddo.participations (
    id bigint NOT NULL,
    status text,
    mastery_rate numeric,
    campaign_id bigint
);
CREATE INDEX participations_by_id ON maddo.participations (id);

CREATE TABLE maddo.passage_events (
    occurred_at timestamptz,
    type text,
    id bigint NOT NULL
);

CREATE TABLE maddo.organization_places (
    organization_id bigint NOT NULL,
    places numeric NOT NULL
);
CREATE TABLE maddo.center_places (
    center_id bigint NOT NULL,
    places numeric NOT NULL
);
