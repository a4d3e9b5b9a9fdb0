"""Pages of other sites get nothing out of this server, and cannot make it work."""

import pytest

from serving.listening import LOOPBACK_NAMES
from tests.edge_harness import running_edge
from tests.http_harness import GENERATE, http_client


@pytest.mark.parametrize(
    ("headers", "good"),
    [
        ({}, True),
        ({"sec-fetch-site": "same-origin"}, True),
        ({"sec-fetch-site": "none", "sec-fetch-mode": "navigate"}, True),
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "cors"}, False),
        ({"sec-fetch-site": "same-site", "sec-fetch-mode": "no-cors"}, False),
        ({"origin": "http://evil.example"}, False),
        ({"origin": "null"}, False),
        ({"origin": "http://localhost:80", "host": "localhost:80"}, True),
        ({"origin": "http://localhost:81", "host": "localhost:80"}, False),
        # A proxy may change the host; the browser's own word is better.
        ({"origin": "https://digits.example", "sec-fetch-site": "same-origin"}, True),
    ],
)
async def test_another_sites_page_is_refused_before_any_work(
    headers: dict[str, str], good: bool
) -> None:
    async with running_edge() as edge, http_client(edge) as client:
        answer = await client.post(GENERATE, json={"label": 1}, headers=headers)
        assert answer.status_code == (200 if good else 403)
        assert bool(edge.network.batches) is good
        if not good:
            assert answer.json()["error"]["status"] == "PERMISSION_DENIED"


async def test_a_link_of_another_site_may_lead_here() -> None:
    headers = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    async with running_edge() as edge, http_client(edge) as client:
        assert (await client.get("/v1/models", headers=headers)).status_code == 200


@pytest.mark.parametrize(
    ("host", "good"),
    [
        ("localhost", True),
        ("LOCALHOST:8080", True),
        ("127.0.0.1:8080", True),
        ("[::1]:8080", True),
        ("digits.example:8080", False),
        ("localhost.digits.example", False),
        ("[", False),
        ("", False),
    ],
)
async def test_a_name_that_somebody_else_made_to_lead_here_is_refused(
    host: str, good: bool
) -> None:
    async with running_edge() as edge, http_client(edge, LOOPBACK_NAMES) as client:
        answer = await client.get("/v1/models", headers={"host": host})
        assert answer.status_code == (200 if good else 403)
        # Probes and scrapes come under whatever name they like.
        assert (await client.get("/readyz", headers={"host": host})).status_code == 200
