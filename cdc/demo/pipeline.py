"""The pipeline of the demo: its configuration as an operator would write it, and the environment it is run with."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from cdc.config import Config, load

TARGETS = ("internal", "external", "datamart")

SOURCE_VARIABLE = "SOURCE_DATABASE_URL"

FILE = """\
# What `cdc demo` runs: one live database, and three that are fed from it.

[source]
dsn = "${SOURCE_DATABASE_URL}"
slot = "cdc"
publication = "cdc"

# All tables, under the source's names; cdc creates them.
[targets.internal]
dsn = "${INTERNAL_DATABASE_URL}"
schema = "follow"
include = ["public.*", "learningcontent.*"]
exclude = ["public.knex_migrations*"]

# These tables and columns, and never one more: no e-mail address, no access code.
[targets.external]
dsn = "${EXTERNAL_DATABASE_URL}"
schema = "follow"
columns = "listed"
tables."public.organizations" = ["id", "name", "type"]
tables."public.campaigns" = ["id", "name", "code", "organizationId", "createdAt"]
tables."public.users" = ["id", "lang", "hasBeenAnonymised"]
tables."public.sessions" = ["id", "date", "time", "duration"]
tables."public.campaign_skills" = ["skillId", "campaignId"]
tables."public.knowledge-element-snapshots" = ["id", "snapshot"]
tables."public.passage-events" = ["id", "type", "occurredAt"]

# Tables of somebody else, without keys; cdc fills them and never changes them.
[targets.datamart]
dsn = "${DATAMART_DATABASE_URL}"
schema = "owned"

[targets.datamart.tables."public.pole-emploi-sendings"]
to = "maddo.pole_emploi_sendings"
columns = { id = "id", payload = "payload", createdAt = "created_at" }

[targets.datamart.tables."public.campaigns"]
to = "maddo.campaigns"
columns = { id = "campaign_id", name = "label", code = "code", organizationId = "organization_id" }

[targets.datamart.tables."public.campaign-participations"]
to = "maddo.participations"
columns = { id = "id", campaignId = "campaign_id", status = "status", masteryRate = "mastery_rate" }

[targets.datamart.tables."public.passage-events"]
to = "maddo.passage_events"
columns = { id = "id", type = "type", occurredAt = "occurred_at" }

[targets.datamart.tables."public.organization-places"]
to = "maddo.organization_places"
columns = { organizationId = "organization_id", count = "places" }

[targets.datamart.tables."public.center-places"]
to = "maddo.center_places"
columns = { centerId = "center_id", count = "places" }

[worker]
heartbeat_interval_s = 0.2      # the lag that is shown is that fine
metrics_address = "127.0.0.1:0" # any free port: several demos can run at once

[logs]
format = "json"
"""


def variable(target: str) -> str:
    """The environment variable that holds a target's connection string."""
    return f"{target.upper()}_DATABASE_URL"


def forget_connection_settings() -> None:
    """Remove libpq's variables (PGHOST, PGOPTIONS, PGSSLMODE, …): they are meant for some other server than ours."""
    for name in [name for name in os.environ if name.startswith("PG")]:
        del os.environ[name]


def environment(source: str, targets: Mapping[str, str]) -> dict[str, str]:
    """The environment of the demo's commands: ours, the connection strings, and no setting of anybody else's."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CDC_")}
    return kept | {SOURCE_VARIABLE: source} | {variable(name): dsn for name, dsn in targets.items()}


def write(path: Path, environ: Mapping[str, str]) -> Config:
    """Write the configuration file and return what is in force with it."""
    path.write_text(FILE, encoding="utf-8")
    return load(path, environ)
