"""The dashboard's files: how they are served, and that each is installed, licensed and free of foreign addresses."""

import gzip
import hashlib
import re
import tomllib
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from server.dashboard.routes import FOLDER
from tests.loopback import WAIT_SECONDS, serving
from tests.server.rest import problem

ROOT = Path(__file__).parent.parent.parent
VENDORED = FOLDER / "vendor"
OWN = [path for path in sorted(FOLDER.rglob("*")) if path.is_file() and VENDORED not in path.parents]


@pytest.fixture
async def browser(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    async with (
        serving(tmp_path) as coordinator,
        httpx.AsyncClient(base_url=f"http://{coordinator.http_address}", timeout=WAIT_SECONDS) as client,
    ):
        yield client


async def test_root_is_the_page_with_a_policy_that_allows_nothing_from_elsewhere(browser: httpx.AsyncClient) -> None:
    response = await browser.get("/")
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert response.content == (FOLDER / "index.html").read_bytes()
    policy = dict(part.partition(" ")[::2] for part in response.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'self'"
    assert policy["require-trusted-types-for"] == "'script'"
    assert policy["trusted-types"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert "unsafe" not in response.headers["content-security-policy"]
    assert response.headers["x-content-type-options"] == "nosniff"


async def test_file_that_the_browser_has_is_not_sent_again(browser: httpx.AsyncClient) -> None:
    first = await browser.get("/dashboard/app.js")
    assert first.headers["content-type"] == "text/javascript; charset=utf-8"
    tag = first.headers["etag"]
    for given in (tag, tag.removeprefix("W/"), f'"other" , {tag},W/"a,b"', "*"):
        again = await browser.get("/dashboard/app.js", headers={"If-None-Match": given})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == tag
    for given in (
        'W/"of-a-release-before"',
        f'{tag[:-1]}-and-more"',
        f'"more-and-{tag.removeprefix("W/")[1:]}',
        f'"x{tag}y"',
        "*x",
    ):
        other = await browser.get("/dashboard/app.js", headers={"If-None-Match": given})
        assert (other.status_code, other.content) == (200, first.content)
    # A tag of the content: it is another one as soon as the file is.
    assert hashlib.sha256(first.content).hexdigest()[:32] in first.headers["etag"]


async def test_file_is_compressed_for_who_can_read_that(browser: httpx.AsyncClient) -> None:
    path = "/dashboard/vendor/uplot/uPlot.iife.min.js"
    async with browser.stream("GET", path, headers={"Accept-Encoding": "gzip"}) as response:
        assert response.headers["content-encoding"] == "gzip"
        sent = b"".join([piece async for piece in response.aiter_raw()])
    plain = await browser.get(path, headers={"Accept-Encoding": "identity"})
    assert "content-encoding" not in plain.headers
    assert response.headers["vary"] == plain.headers["vary"] == "Accept-Encoding"
    assert gzip.decompress(sent) == plain.content
    assert 2 * len(sent) < len(plain.content)


@pytest.mark.parametrize(
    "path", ["/dashboard/none.js", "/dashboard/../../pyproject.toml", "/dashboard/%2e%2e/routes.py"]
)
async def test_path_that_is_no_file_of_the_dashboard_is_a_problem(browser: httpx.AsyncClient, path: str) -> None:
    response = await browser.get(httpx.URL(path))
    assert response.status_code == 404
    assert response.headers["content-type"] == "application/problem+json"


async def test_unknown_name_is_named(browser: httpx.AsyncClient) -> None:
    detail = problem(await browser.get("/dashboard/none.js"), 404)
    assert detail == "Dashboard: must have a file of this name, got 'none.js'."


def test_every_address_of_the_page_is_a_file_that_is_there() -> None:
    page = (FOLDER / "index.html").read_text()
    named = re.findall(r'(?:href|src)="dashboard/([^"]+)"', page)
    assert len(named) > 8
    assert [name for name in named if not (FOLDER / name).is_file()] == []


def test_every_import_is_a_file_that_is_there() -> None:
    missing = [
        f"{path.relative_to(FOLDER)} imports {name}"
        for path in OWN
        if path.suffix == ".js"
        for name in re.findall(r"""(?:from|import\()\s*["']([^"']+)["']""", path.read_text())
        if not (path.parent / name).is_file()
    ]
    assert missing == []


@pytest.mark.parametrize("path", OWN, ids=lambda path: path.relative_to(FOLDER).as_posix())
def test_own_file_has_no_foreign_address_and_makes_no_markup_of_text(path: Path) -> None:
    text = path.read_text().replace("http://www.w3.org/2000/svg", "")
    assert re.findall(r"https?://\S+", text) == []
    assert (
        re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|dangerouslySetInnerHTML|document\.write|\beval\b", text)
        == []
    )


def test_every_vendored_package_brings_its_licence_and_is_named() -> None:
    notice = (ROOT / "NOTICE").read_text()
    packages = [folder for folder in VENDORED.iterdir() if folder.is_dir()]
    assert len(packages) == 4
    for folder in packages:
        assert (folder / "LICENSE").read_text().strip()
        assert f"server/dashboard/static/vendor/{folder.name}" in notice


def test_every_file_is_installed_with_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["server.dashboard"]
    installed = {path for pattern in patterns for path in FOLDER.parent.glob(pattern) if path.is_file()}
    assert installed == {path for path in FOLDER.rglob("*") if path.is_file()}
