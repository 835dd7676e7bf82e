"""A server in a container (``pytest --postgres=docker``), for machines that have an engine and no other PostgreSQL.

The image is the official one; ``CDC_TEST_PG_IMAGE`` names another version of it, ``CDC_TEST_TARGET_PG_IMAGE`` another
one for targets (`tests.servers.container_image`).
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import quote as url_quote

import psycopg
from testcontainers.community.postgres import PostgresContainer

from cdc.identifiers import quote


class ContainerServer:
    """One server in one container; the same methods as `cdc.demo.postgres.Cluster` has."""

    def __init__(self, image: str, settings: Mapping[str, str | int]) -> None:
        words = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        self._container = PostgresContainer(image, username="postgres", password="postgres", dbname="postgres")
        self._container.with_command(["postgres", *words])
        self._runs = False

    def dsn(self, database: str = "postgres", *, user: str = "postgres", password: str | None = None) -> str:
        """A URL for one database; the superuser's password is put in."""
        secret = url_quote(password or ("postgres" if user == "postgres" else ""), safe="")
        host, port = self._container.get_container_host_ip(), self._container.get_exposed_port(5432)
        return f"postgresql://{url_quote(user, safe='')}:{secret}@{host}:{port}/{url_quote(database, safe='')}"

    def create_database(self, name: str) -> str:
        """Create an empty database and return its URL."""
        with psycopg.connect(self.dsn(), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {quote(name)} TEMPLATE template0")
        return self.dsn(name)

    def start(self) -> None:
        """Start the container and wait until its server accepts connections."""
        self._container.start()
        self._runs = True

    def kill(self) -> None:
        """Stop the server as in a crash; the container, and what it held, is gone."""
        self._runs = False
        self._container.stop()

    def close(self) -> None:
        """Remove the container."""
        if self._runs:
            self.kill()

    def log_text(self) -> str:
        """What the server has logged so far."""
        output, errors = self._container.get_logs()
        return bytes(output + errors).decode(errors="replace")

    @property
    def running(self) -> bool:
        """Whether the container has been started and not stopped."""
        return self._runs
