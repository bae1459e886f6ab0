"""A browser, and a federation of real processes for it to show. Tests of a module share them, and an event loop."""

import shutil
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio
from playwright.async_api import Browser, async_playwright, expect

from tests.browser.dashboard import Dashboard
from tests.federation import Federation

PROGRAM = "chromium"
WAIT_MILLISECONDS = 30_000

expect.set_options(timeout=WAIT_MILLISECONDS)


@pytest.fixture(scope="module")
def chromium() -> str:
    """Where the browser is; asked for first, so that no federation starts in vain."""
    if (path := shutil.which(PROGRAM)) is None:
        pytest.skip(f"{PROGRAM} is not installed: apt-get install {PROGRAM}")
    return path


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser(chromium: str) -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        # Its sandbox wants a user other than root.
        browser = await playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        await browser.close()


@pytest_asyncio.fixture(loop_scope="module")
async def dashboard(browser: Browser) -> AsyncIterator[Dashboard]:
    """A page on which nothing may go wrong that a test does not expect."""
    page = await browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(WAIT_MILLISECONDS)
    dashboard = Dashboard(page)
    await dashboard.watch()
    yield dashboard
    await page.close()
    assert dashboard.complaints() == []


@pytest.fixture(scope="module")
def federation(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """A coordinator and two clients, each with the handwriting of about one person."""
    with Federation(tmp_path_factory.mktemp("federation")) as federation:
        federation.start_coordinator()
        federation.start_digits_clients(2)
        federation.wait_for_clients(2)
        yield federation
