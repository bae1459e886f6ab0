"""A run of 10,000 rounds is a page as light as any other."""

from pathlib import Path

import pytest
from playwright.async_api import expect

from tests.browser.dashboard import Dashboard, address_of
from tests.browser.seeding import add_clients, add_run, store_in
from tests.loopback import serving

pytestmark = pytest.mark.asyncio(loop_scope="module")

ROUND_COUNT = 10_000
MOST_BYTES = 2_000_000
MOST_POINTS = 400


async def test_page_of_10_000_rounds_is_sent_in_under_2_mb(dashboard: Dashboard, tmp_path: Path) -> None:
    store = await store_in(tmp_path)
    await add_clients(store)
    run_id = await add_run(store, 1, ROUND_COUNT)
    await store.close()
    async with serving(tmp_path) as coordinator:
        page = await dashboard.open(address_of(coordinator), f"runs/{run_id}")
        await expect(page.get_by_text("10,000 of 10,000 rounds")).to_be_visible()
        chart = page.get_by_role("img", name="Accuracy over the rounds. Rounds 25 to 10000: ")
        await expect(chart).to_be_visible()
        await expect(page.get_by_role("img", name="Bytes of a round. Rounds 9951 to 10000")).to_be_visible()
        await expect(page.get_by_label("Loading")).to_have_count(0)
        await page.get_by_text("As a table").first.click()
        rows = page.get_by_role("region", name="Accuracy over the rounds, as a table").get_by_role("row")
        await expect(rows.first).to_be_visible()
        await expect(rows.first.get_by_role("columnheader").first).to_have_css("text-align", "right")
        points = await rows.count()
        assert MOST_POINTS / 2 < points <= MOST_POINTS + 1
        assert 50_000 < dashboard.sent_bytes < MOST_BYTES
        page = await dashboard.open(address_of(coordinator), f"compare?runs={run_id}")
        await expect(page.get_by_text("A point of run-1 is the mean of 25 rounds.")).to_be_visible()
