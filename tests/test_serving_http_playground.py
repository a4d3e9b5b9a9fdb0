"""The page is files of this package: nothing from elsewhere, nothing inline."""

import re
from pathlib import Path

import pytest

from tests.edge_harness import running_edge
from tests.http_harness import http_client


async def test_the_page_and_all_its_files_are_there_with_a_strict_policy(repository: Path) -> None:
    async with running_edge() as edge, http_client(edge) as client:
        names = {path.name for path in (repository / "serving" / "page").iterdir()}
        for path in ["/", *(f"/page/{name}" for name in names - {"index.html"})]:
            answer = await client.get(path)
            assert answer.status_code == 200, path
            policy = answer.headers["content-security-policy"]
            assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
            assert "unsafe" not in policy
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cache-control"] == "no-cache"
        assert (await client.get("/")).headers["content-type"] == "text/html; charset=utf-8"
        script = await client.get("/page/page.js")
        assert script.headers["content-type"] == "text/javascript; charset=utf-8"
        assert (await client.get("/page/../service.py")).status_code == 404


async def test_the_page_learns_where_grpc_is() -> None:
    async with running_edge() as edge, http_client(edge) as client:
        facts = (await client.get("/page/server.json")).json()
        assert facts == {"grpc_port": edge.port, "tls": False, "needs_token": False}


@pytest.mark.parametrize(
    ("what", "pattern"),
    [
        ("another site", r"(?:https?:)?//(?!www\.w3\.org/2000/svg)[\w-]+\.[\w.-]+"),
        ("inline script or style", r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)|javascript:"),
        ("text taken for HTML", r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\("),
    ],
)
def test_no_file_of_the_page_has(repository: Path, what: str, pattern: str) -> None:
    for path in (repository / "serving" / "page").iterdir():
        assert not re.search(pattern, path.read_text()), f"{path.name} has {what}"
