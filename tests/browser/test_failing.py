"""Runs that really fail, with real clients: what each page says of it, in light and in dark, and on a phone."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Page, expect

from tests.browser.dashboard import Dashboard, card
from tests.browser.test_pages import PHONE_WIDTH, WIDE
from tests.federation import Federation

pytestmark = pytest.mark.asyncio(loop_scope="module")

OWN = f"{Path(__file__).parents[1] / 'frail.py'}:Frail"
ASKED_ALONE = "This site's policy: a round must ask at least minimum_cohort (2) clients, got 1."


@pytest.fixture(scope="module")
def frail(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """A coordinator and two clients with a learner that fails, and a policy by which no client is asked alone."""
    folder = tmp_path_factory.mktemp("frail")
    (folder / "policy.yaml").write_text("minimum_cohort: 2\n")
    with Federation(folder, "--learner", OWN) as federation:
        federation.start_coordinator()
        for block in range(2):
            options = ["--policy", str(folder / "policy.yaml"), "--learner", OWN]
            federation.start_client(f"site-{block}", f"digits,blocks={block}", *options)
        federation.wait_for_clients(2)
        yield federation


async def test_run_that_no_policy_allows_is_paused_with_each_sites_words(
    dashboard: Dashboard, frail: Federation
) -> None:
    page = await opened(dashboard, frail, "paused", learner={"name": "mlp", "inputs": [1, 8, 8]}, cohort={"size": 1})
    await expect(page.locator(".now-status")).to_have_text(re.compile("^Round 1: quorum must be 1 contribution, got 0"))
    rows = card(page, "Refused in round 1").get_by_role("row")
    await expect(rows).to_have_count(3)
    for row, name in zip((rows.nth(1), rows.nth(2)), ("site-0", "site-1"), strict=True):
        await expect(row).to_have_text(f"{name}client policy{ASKED_ALONE}")
    await expect(page.get_by_role("button", name="Resume")).to_be_visible()
    await is_sound(dashboard, page)


async def test_run_whose_learner_raises_on_every_client_is_paused_and_sends_to_their_logs(
    dashboard: Dashboard, frail: Federation
) -> None:
    page = await opened(dashboard, frail, "paused", learner={"fails": "fit"})
    await expect(page.locator(".now-status")).to_contain_text("Mend the clients, then resume the run.")
    row = card(page, "Refused in round 1").get_by_role("row").last
    await expect(row).to_have_text(
        re.compile(r"site-\dclient errorUnexpected RuntimeError\. The client's log has the ")
    )
    await is_sound(dashboard, page)


async def test_run_that_fails_on_the_coordinator_says_why_and_shows_how_far_it_came(
    dashboard: Dashboard, frail: Federation
) -> None:
    page = await opened(dashboard, frail, "failed", learner={"fails": "apply"})
    await expect(page.get_by_role("heading", level=1)).to_contain_text("Failed")
    reason = "Unexpected RuntimeError: the server step needs 3 tensors, got 2"
    await expect(page.locator(".now-status")).to_have_text(reason)
    await expect(card(page, "Events of this run").get_by_role("listitem").first).to_contain_text(
        f"Run failed · {reason}"
    )
    await expect(page.get_by_role("button", name="Download model")).to_be_visible()
    await expect(page.get_by_role("button", name="Resume")).to_have_count(0)
    # One round is a point, as it makes no line.
    await expect(card(page, "Learning").locator("canvas").first).to_be_visible()
    await page.wait_for_function(INK, arg="--line-1")
    await is_sound(dashboard, page)


INK = """(tint) => {
    const probe = document.body.appendChild(document.createElement("i"));
    probe.style.color = `var(${tint})`;
    const [red, green, blue] = getComputedStyle(probe).color.match(/\\d+/g).map(Number);
    probe.remove();
    const canvas = document.querySelector(".chart canvas");
    const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    let found = 0;
    for (let at = 0; at < data.length; at += 4) found += data[at] === red && data[at + 1] === green && data[at + 2] === blue;
    return found;
}"""
"""How many dots of the first chart have a colour of the page: 0 is false."""


async def opened(dashboard: Dashboard, federation: Federation, state: str, **changes: Any) -> Page:
    """Play a run until it has come to a state, and open its page."""
    learner = {"name": "frail", "inputs": [1, 8, 8]} | changes.pop("learner")
    cohort = {"size": 2, "retries": 1} | changes.pop("cohort", {})
    run_id = federation.submit({"name": "frail", "seed": 7, "rounds": 3, "learner": learner, "cohort": cohort})
    federation.wait_for_end(run_id, state)
    page = await dashboard.open(federation.http_address, f"runs/{run_id}")
    await expect(page.get_by_label("Loading")).to_have_count(0)
    return page


async def is_sound(dashboard: Dashboard, page: Page) -> None:
    """Check that a page can be read by everybody, and on a phone."""
    assert await dashboard.violations() == []
    await page.set_viewport_size({"width": PHONE_WIDTH, "height": 740})
    assert await page.evaluate(WIDE) == ""
