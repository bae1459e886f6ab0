"""How soon the dashboard is there, how much of it is sent, and how soon news is seen: in Chromium, on loopback."""

import argparse
import asyncio
import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path

from playwright.async_api import Browser, Page, async_playwright, expect

from benchmarks.machine import describe
from server.coordinator import Coordinator
from server.records import EventRecord
from tests.browser.dashboard import Dashboard
from tests.browser.seeding import BEGINNING, add_clients, add_run, store_in
from tests.loopback import serving

RUN_COUNT = 200
ROUND_COUNT = 10_000
REPEATS = 5

PAINTED = "performance.getEntriesByName('first-contentful-paint')[0].startTime / 1000"
SHOWN = "performance.now() / 1000"
"""Seconds since the page was asked for."""


async def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="File for the figures.")
    arguments = parser.parse_args()
    if (program := shutil.which("chromium")) is None:
        raise SystemExit("chromium is not installed: apt-get install chromium")
    print(describe())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        long_run = await seed(folder)
        async with serving(folder) as coordinator, async_playwright() as playwright:
            browser = await playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
            figures = await runs_page(browser, coordinator)
            figures |= await run_page(browser, coordinator, long_run)
            figures |= await news(browser, coordinator)
            await browser.close()
    for key, value in figures.items():
        print(f"{key:32} {value:12.3f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


async def seed(folder: Path) -> str:
    """Write the runs into a store, and return the identity of the long one."""
    store = await store_in(folder)
    await add_clients(store)
    long_run = await add_run(store, 0, ROUND_COUNT)
    for number in range(1, RUN_COUNT):
        await add_run(store, number, 20)
    await store.close()
    return long_run


async def visit(browser: Browser, coordinator: Coordinator, place: str) -> Dashboard:
    """Open a place in a browser that has nothing of it yet."""
    dashboard = Dashboard(await (await browser.new_context()).new_page())
    await dashboard.watch()
    await dashboard.open(str(coordinator.http_address), place)
    return dashboard


async def settled(page: Page) -> float:
    """Return the time at which nothing was loading any more."""
    await expect(page.locator(".skeleton, .loading-page")).to_have_count(0)
    return float(await page.evaluate(SHOWN))


async def runs_page(browser: Browser, coordinator: Coordinator) -> dict[str, float]:
    """Measure the list of runs: when something is painted, and when the runs are there."""
    painted, shown = [], []
    for _ in range(REPEATS):
        dashboard = await visit(browser, coordinator, "runs")
        await dashboard.page.locator(".runs .run").first.wait_for()
        shown.append(float(await dashboard.page.evaluate(SHOWN)))
        painted.append(float(await dashboard.page.evaluate(PAINTED)))
        await dashboard.page.context.close()
    return {"runs_first_paint_seconds": statistics.median(painted), "runs_shown_seconds": statistics.median(shown)}


async def run_page(browser: Browser, coordinator: Coordinator, run_id: str) -> dict[str, float]:
    """Measure the page of the long run: when all of it is there, and what was sent; the first visit reads all rounds."""
    shown, sent = [], []
    for _ in range(REPEATS):
        dashboard = await visit(browser, coordinator, f"runs/{run_id}")
        await dashboard.page.locator(".chart canvas").nth(3).wait_for()
        shown.append(await settled(dashboard.page))
        sent.append(dashboard.sent_bytes)
        await dashboard.page.context.close()
    return {
        "long_run_first_seconds": shown[0],
        "long_run_again_seconds": statistics.median(shown[1:]),
        "long_run_megabytes": max(sent) / 1e6,
    }


async def news(browser: Browser, coordinator: Coordinator) -> dict[str, float]:
    """Measure from an event's entry in the store until its words are on a page."""
    dashboard = await visit(browser, coordinator, "system")
    await settled(dashboard.page)
    await dashboard.page.get_by_text("Live", exact=True).wait_for()
    delays = []
    for number in range(4 * REPEATS):
        detail = f"news {number}."
        began = time.perf_counter()
        await coordinator.store.append_event(
            EventRecord(time=BEGINNING, kind="metric_missing", client_id=str(number), detail=detail)
        )
        await dashboard.page.get_by_text(detail).wait_for()
        delays.append(time.perf_counter() - began)
    await dashboard.page.context.close()
    return {"news_median_seconds": statistics.median(delays), "news_longest_seconds": max(delays)}


if __name__ == "__main__":
    asyncio.run(main())
