"""The worker's pages over real sockets."""

from __future__ import annotations

import socket
from base64 import b64encode
from collections.abc import Mapping

import aiohttp
import pytest
from pydantic import SecretStr

from cdc.errors import ConfigurationError
from cdc.observe.metrics import Metrics
from cdc.service import http

PASSWORD = SecretStr("hunter2")


def _ipv6_hosts() -> list[str]:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return ["::1", "[::1]"]
    except OSError:
        return []


def nothing_missing() -> Mapping[str, str]:
    return {}


async def get(address: tuple[str, int], path: str, password: str | None = None) -> tuple[int, str, Mapping[str, str]]:
    """Status, body and headers."""
    host = f"[{address[0]}]" if ":" in address[0] else address[0]
    headers = {}
    if password is not None:
        headers["Authorization"] = "Basic " + b64encode(f"prometheus:{password}".encode()).decode()
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.get(f"http://{host}:{address[1]}{path}") as answer,
    ):
        return answer.status, await answer.text(), answer.headers


async def test_metrics_are_served_as_prometheus_wants_them() -> None:
    metrics = Metrics("cdc")
    metrics.target("internal").position(42)
    async with http.serve("127.0.0.1", 0, metrics=metrics, readiness=nothing_missing) as address:
        status, body, headers = await get(address, "/metrics")
    assert status == 200
    assert headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert 'cdc_position_bytes{pipeline="cdc",target="internal"} 42.0' in body


async def test_health_is_the_process_and_readiness_the_databases() -> None:
    missing = {"internal": "no connection to target internal"}
    async with http.serve("127.0.0.1", 0, metrics=Metrics("cdc"), readiness=lambda: missing) as address:
        assert (await get(address, "/healthz"))[0] == 200
        status, body, _ = await get(address, "/readyz")
        assert status == 503
        assert body == '{"ready": false, "missing": {"internal": "no connection to target internal"}}'
        missing.clear()
        status, body, _ = await get(address, "/readyz")
        assert status == 200
        assert body == '{"ready": true, "missing": {}}'


async def test_the_password_guards_metrics_and_reasons_but_not_the_platforms_probes() -> None:
    missing = {"source": "the slot is in use"}
    async with http.serve(
        "127.0.0.1", 0, metrics=Metrics("cdc"), readiness=lambda: missing, password=PASSWORD
    ) as address:
        status, body, headers = await get(address, "/metrics")
        assert status == 401
        assert headers["WWW-Authenticate"].startswith("Basic ")
        assert "cdc_" not in body
        assert (await get(address, "/metrics", "wrong"))[0] == 401
        assert (await get(address, "/metrics", "hunter2"))[0] == 200
        assert (await get(address, "/healthz"))[0] == 200
        assert (await get(address, "/readyz"))[:2] == (503, '{"ready": false}')
        assert "the slot is in use" in (await get(address, "/readyz", "hunter2"))[1]


@pytest.mark.parametrize("header", ["Basic !!!", "Basic aHVudGVyMg==", "Bearer hunter2", "Basic", ""])
async def test_a_damaged_authorization_is_refused_not_an_error(header: str) -> None:
    async with (
        http.serve("127.0.0.1", 0, metrics=Metrics("cdc"), readiness=nothing_missing, password=PASSWORD) as (
            host,
            port,
        ),
        aiohttp.ClientSession(headers={"Authorization": header}) as session,
        session.get(f"http://{host}:{port}/metrics") as answer,
    ):
        assert answer.status == 401


async def test_a_port_in_use_is_one_clear_error() -> None:
    async with http.serve("127.0.0.1", 0, metrics=Metrics("cdc"), readiness=nothing_missing) as (host, port):
        with pytest.raises(ConfigurationError, match=rf"cannot listen on {host}:{port} for metrics: another process"):
            async with http.serve(host, port, metrics=Metrics("cdc"), readiness=nothing_missing):
                pass


@pytest.mark.parametrize(
    ("host", "reason"), [("192.0.2.1", "no such address"), ("no-such-host.invalid", "cannot be resolved")]
)
async def test_an_address_that_is_not_ours_is_one_clear_error(host: str, reason: str) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        async with http.serve(host, 0, metrics=Metrics("cdc"), readiness=nothing_missing):
            pass


@pytest.mark.parametrize("host", [*_ipv6_hosts(), "localhost", "", "*"])
async def test_ipv6_names_and_every_interface_are_accepted(host: str) -> None:
    async with http.serve(host, 0, metrics=Metrics("cdc"), readiness=nothing_missing) as (bound, port):
        reachable = {"::": "::1", "0.0.0.0": "127.0.0.1"}.get(bound, bound)
        assert (await get((reachable, port), "/healthz"))[0] == 200


async def test_the_port_is_free_again_afterwards() -> None:
    async with http.serve("127.0.0.1", 0, metrics=Metrics("cdc"), readiness=nothing_missing) as (host, port):
        await get((host, port), "/healthz")
    with socket.create_server((host, port)):
        pass
