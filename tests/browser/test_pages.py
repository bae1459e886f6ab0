"""Every page: names of others stay text, nothing is wider than a phone, and a part that a coordinator lacks is told in words."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Literal

import pytest
from playwright.async_api import expect

from server.coordinator import Coordinator
from server.records import RefusalRecord, RunState
from tests.browser.dashboard import Dashboard, address_of, card
from tests.browser.seeding import store_in
from tests.loopback import serving
from tests.server.rest import stored_run
from tests.server.store.samples import make_client, make_event, make_round

HOSTILE = "<img src=x onerror=window.hostile=1><script>window.hostile=1</script>"
RUN_ID = "0123456789ab"
CLIENT_ID = "c" * 64
PHONE_WIDTH = 360

PLACES = (
    "runs",
    f"runs/{RUN_ID}",
    f"compare?runs={RUN_ID}",
    "clients",
    f"clients/{CLIENT_ID}",
    "submit",
    "system",
    "nowhere",
)
WIDE = """() => {
    if (document.documentElement.scrollWidth <= innerWidth) return "";
    const wide = [...document.body.querySelectorAll("*")].filter((part) => part.getBoundingClientRect().right > innerWidth + 1);
    return wide.slice(-3).map((part) => part.outerHTML.slice(0, 120)).join("; ");
}"""
"""What makes a page wider than its window."""


@pytest.fixture
async def hostile(tmp_path: Path) -> AsyncIterator[Coordinator]:
    """A coordinator whose every text from others would like to be markup."""
    before = await store_in(tmp_path)
    await before.put_client(
        make_client(CLIENT_ID, HOSTILE).with_(device=HOSTILE, data_kind=HOSTILE, learners=[HOSTILE])
    )
    await before.close()
    async with serving(tmp_path) as coordinator:
        store = coordinator.store
        await stored_run(
            coordinator,
            RUN_ID,
            RunState.FAILED,
            reason=HOSTILE,
            round_number=1,
            metrics={HOSTILE: 0.5},
            model_sha256="ab",
        )
        refusal = RefusalRecord(client_id=CLIENT_ID, reason=HOSTILE, detail=HOSTILE)
        record = make_round(1, RUN_ID).with_(
            selected=[CLIENT_ID], contributions=[], refusals=[refusal], metrics={HOSTILE: 0.5}
        )
        await store.put_round(record)
        await store.append_event(make_event("run_failed", RUN_ID).with_(detail=HOSTILE, client_id=CLIENT_ID))
        yield coordinator


async def test_names_and_errors_of_others_stay_text(dashboard: Dashboard, hostile: Coordinator) -> None:
    shown = 0
    for place in PLACES:
        page = await dashboard.open(address_of(hostile), place)
        await expect(
            page.get_by_role("heading", level=1).or_(page.locator(".empty-title")).or_(page.get_by_role("alert")).first
        ).to_be_visible()
        await expect(page.get_by_label("Loading")).to_have_count(0)
        shown += await page.get_by_text(HOSTILE).count()
        assert await page.locator("img[src=x]").count() == 0
        assert await page.evaluate("window.hostile === undefined")
    assert shown >= len(("reason in the list", "reason", "event", "name in the list", "name", "event of all"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_no_page_is_wider_than_a_phone(
    dashboard: Dashboard, hostile: Coordinator, scheme: Literal["light", "dark"]
) -> None:
    await dashboard.page.set_viewport_size({"width": PHONE_WIDTH, "height": 740})
    await dashboard.page.emulate_media(color_scheme=scheme)
    for place in PLACES:
        page = await dashboard.open(address_of(hostile), place)
        await expect(page.get_by_label("Loading")).to_have_count(0)
        wide = await page.evaluate(WIDE)
        assert not wide, f"{place}: {wide}"


async def test_part_that_a_coordinator_lacks_is_told_and_the_rest_works(
    dashboard: Dashboard, hostile: Coordinator
) -> None:
    dashboard.tolerated.append("404 (Not Found)")
    # As a coordinator of an earlier release would answer.
    await dashboard.page.route(
        "**/api/v1/runs/*/summaries*",
        lambda route: route.fulfill(status=404, json={"title": "HTTP", "type": "urn:choral:problem:http"}),
    )
    page = await dashboard.open(address_of(hostile), f"runs/{RUN_ID}")
    told = f"This coordinator does not tell it: it knows no /api/v1/runs/{RUN_ID}/summaries."
    await expect(card(page, "Cost of a round").get_by_role("alert")).to_contain_text(told)
    await expect(card(page, "Settings")).to_contain_text("mlp")
    await expect(page.get_by_role("alert")).to_have_count(1)
