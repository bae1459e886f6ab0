"""Runs in the browser: submitted, watched, compared, downloaded, paused and resumed, with real client processes."""

import asyncio
import contextlib
import re
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Error, Page, Route, expect

from tests.browser.dashboard import Dashboard, card, run_of
from tests.federation import Federation, tensor_bytes

pytestmark = pytest.mark.asyncio(loop_scope="module")

MOST_STOPS = 150
"""Presses of the tab key within which everything on a page must be reached."""

SPEC: dict[str, Any] = {
    "name": "digits-mlp",
    "seed": 7,
    "learner": {"name": "mlp", "inputs": [1, 8, 8]},
    "rounds": 3,
    "cohort": {"size": 2},
}
BETWEEN = (1 << 53) + 1
"""A seed that a Number of JavaScript would round."""
LARGEST = (1 << 63) - 1
LATE_SECONDS = 1.0
"""Longer than several rounds take."""
LONG = {**SPEC, "name": "long", "rounds": 5_000}


def shown(value: float) -> str:
    """Write a metric as the dashboard does: with four significant digits."""
    return f"{value:#.4g}"


async def test_run_submitted_in_the_form_is_watched_to_its_end(dashboard: Dashboard, federation: Federation) -> None:
    # What a browser says of a spec that is refused while it is typed.
    dashboard.tolerated.append("422 (Unprocessable Entity)")
    page = await dashboard.open(federation.http_address, "submit")
    await page.get_by_label("Name · needed", exact=True).first.fill("from-the-form")
    await page.locator("#rounds").fill("0")
    await expect(page.locator("#rounds-about")).to_contain_text("must be greater than or equal to 1, got 0")
    await expect(page.get_by_role("button", name="Submit run")).to_be_disabled()
    await page.locator("#rounds").fill("3")
    await page.locator("[id='cohort.size']").fill("2")
    await page.get_by_role("button", name="Submit run").click()
    await expect(page.get_by_role("heading", level=1)).to_contain_text("from-the-form")
    await expect(page.locator(".now-rounds")).to_contain_text("3 of 3 rounds")
    await expect(page.get_by_role("heading", level=1)).to_contain_text("Finished")
    run = federation.run(run_of(page))
    assert run["spec"]["name"] == "from-the-form"
    assert (run["spec"]["rounds"], run["spec"]["cohort"]["size"], run["state"]) == (3, 2, "finished")
    for name in ("accuracy", "loss"):
        await expect(card(page, "Learning")).to_contain_text(shown(run["metrics"][name]))
    await expect(card(page, "Model")).to_contain_text(run["model_sha256"])
    assert await dashboard.violations() == []
    assert await dashboard.is_untouched()


async def test_run_is_submitted_with_the_keyboard_alone(dashboard: Dashboard, federation: Federation) -> None:
    dashboard.tolerated.append("422 (Unprocessable Entity)")
    page = await dashboard.open(federation.http_address)
    await expect(page.get_by_role("link", name="New run").first).to_be_visible()
    await tab_to(page, "New run")
    await page.keyboard.press("Enter")
    await expect(page.locator("#name")).to_be_visible()
    for field, text in (("name", "by-keyboard"), ("rounds", "1"), ("cohort.size", "2")):
        await tab_to(page, f"#{field}")
        await page.keyboard.press("Control+A")
        await page.keyboard.type(text)
    await expect(page.get_by_role("button", name="Submit run")).to_be_enabled()
    await tab_to(page, "Submit run")
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("heading", level=1)).to_contain_text("Finished")
    assert federation.run(run_of(page))["spec"]["name"] == "by-keyboard"


async def test_run_is_cloned_with_changes_and_a_seed_of_any_size(dashboard: Dashboard, federation: Federation) -> None:
    dashboard.tolerated.append("422 (Unprocessable Entity)")
    run_id = federation.submit({**SPEC, "name": "original", "seed": BETWEEN})
    spec = federation.wait_for_end(run_id)["spec"]
    page = await dashboard.open(federation.http_address, f"runs/{run_id}")
    await expect(card(page, "Settings")).to_contain_text(str(BETWEEN))
    await page.get_by_role("button", name="Clone").click()
    await page.get_by_role("dialog").get_by_role("link", name="Change the spec").click()
    seed, text = page.locator("#seed"), page.get_by_label("The spec as text")
    await expect(page.locator("#name")).to_have_value("original")
    await expect(seed).to_have_value(str(BETWEEN))
    await expect(text).to_have_value(re.compile(rf"^seed: {BETWEEN}$", re.MULTILINE))
    await page.locator("#rounds").fill("1")
    await seed.fill(str(LARGEST - 1))
    written = await text.input_value()
    assert f"seed: {LARGEST - 1}\n" in written
    await text.fill(written.replace(str(LARGEST - 1), str(LARGEST)))
    await expect(seed).to_have_value(str(LARGEST))
    await page.get_by_role("button", name="Submit run").click()
    await expect(page.get_by_role("heading", level=1)).to_contain_text("Finished")
    clone = run_of(page)
    assert clone != run_id
    assert federation.run(clone)["spec"] == {**spec, "rounds": 1, "seed": LARGEST}


async def test_two_runs_are_compared_in_one_chart(dashboard: Dashboard, federation: Federation) -> None:
    first = federation.submit({**SPEC, "name": "first"})
    second = federation.submit({**SPEC, "name": "second", "seed": 8})
    runs = [federation.wait_for_end(run_id) for run_id in (first, second)]
    page = await dashboard.open(federation.http_address)
    for name in ("first", "second"):
        await page.get_by_label(f"Pick {name} to compare").check()
    await page.get_by_role("region", name="Picked runs").get_by_role("link", name="Compare").click()
    chart = page.get_by_role("img", name="Accuracy of 2 runs")
    await expect(chart).to_be_visible()
    for run in runs:
        label = await chart.get_attribute("aria-label") or ""
        assert f"{run['spec']['name']} {run['run_id'][:4]} from " in label
        assert f" to {shown(run['metrics']['accuracy'])}" in label
        await expect(card(page, "What they reached")).to_contain_text(run["run_id"])
    assert await dashboard.violations() == []
    differences = card(page, "Where their specs differ").get_by_role("row")
    assert [await row.inner_text() for row in await differences.all()] == ["Setting\tfirst\tsecond", "seed\t7\t8"]


async def test_model_is_downloaded_as_the_coordinator_has_it(
    dashboard: Dashboard, federation: Federation, tmp_path: Path
) -> None:
    run_id = federation.submit({**SPEC, "name": "for-download"})
    federation.wait_for_end(run_id)
    page = await dashboard.open(federation.http_address, f"runs/{run_id}")
    async with page.expect_download() as started:
        await page.get_by_role("button", name="Download model").click()
    download = await started.value
    assert download.suggested_filename == "for-download-3.safetensors"
    await download.save_as(tmp_path / "model.safetensors")
    assert tensor_bytes(tmp_path / "model.safetensors") == federation.model_bytes(run_id)


async def test_run_is_paused_resumed_and_stopped(dashboard: Dashboard, federation: Federation) -> None:
    run_id = federation.submit(LONG)
    page = await dashboard.open(federation.http_address, f"runs/{run_id}")
    heading = page.get_by_role("heading", level=1)
    await page.get_by_role("button", name="Pause", exact=True).click()
    assert await dashboard.violations() == []
    await page.keyboard.press("Escape")
    await expect(page.get_by_role("dialog")).to_have_count(0)
    assert federation.run(run_id)["state"] in ("queued", "running")
    await page.get_by_role("button", name="Pause", exact=True).click()
    await page.get_by_role("button", name="Pause run").click()
    await expect(heading).to_contain_text("Paused")
    assert federation.run(run_id)["state"] == "paused"
    await page.get_by_role("button", name="Resume", exact=True).click()
    await expect(page.get_by_role("dialog")).to_contain_text("It goes on with round ")
    await page.get_by_role("button", name="Resume run").click()
    await expect(heading).to_contain_text("Running")
    await page.get_by_role("button", name="Stop", exact=True).click()
    await page.get_by_role("button", name="Stop run").click()
    await expect(heading).to_contain_text("Stopped")
    assert federation.run(run_id)["state"] == "stopped"
    await expect(page.get_by_role("button", name="Resume")).to_have_count(0)


async def test_client_that_holds_a_round_up_is_told_as_it_happens(dashboard: Dashboard, federation: Federation) -> None:
    run_id = federation.submit({**LONG, "name": "held-up"})
    page = await dashboard.open(federation.http_address, f"runs/{run_id}")
    await expect(page.locator(".now-rounds")).to_contain_text(re.compile(r"[1-9]\d* of 5,000 rounds"))
    held = federation.clients["site-0"]
    held.pause()
    try:
        # It is held wherever it was.
        waiting = re.compile(r"Waiting for 1 of 2 (updates|evaluations), \d+ min( \d+ s)? left")
        await expect(page.locator(".waiting")).to_have_text(waiting)
        await expect(page.get_by_label("State of the run")).to_contain_text(
            re.compile(r"Round \d+, (train|evaluate) · ")
        )
        await page.get_by_role("link", name="Clients", exact=True).click()
        row = page.get_by_role("row").filter(has_text="site-0")
        await expect(row).to_contain_text("Busy")
        await expect(page.get_by_role("row").filter(has_text="site-1")).to_contain_text("Connected")
        assert await dashboard.is_untouched()
    finally:
        held.resume()
    await page.go_back()
    await expect(page.get_by_role("img", name="Accuracy over the rounds")).to_be_visible()
    federation.rest.post(f"/runs/{run_id}/stop")
    # What is idle again is told, too.
    await page.go_forward()
    await expect(row).to_contain_text("Connected")


@pytest.mark.parametrize("place", ["runs", "runs/{run_id}"])
async def test_clients_that_are_waited_for_are_counted_as_they_go_and_come(
    dashboard: Dashboard, federation: Federation, place: str
) -> None:
    run_id = federation.submit({**SPEC, "name": "counts", "cohort": {"size": 3, "wait_seconds": 3_600}})
    page = await dashboard.open(federation.http_address, place.format(run_id=run_id))
    waiting = page.locator(".waiting")
    await expect(waiting).to_contain_text("Waiting for 1 of 3 clients")
    federation.clients["site-1"].kill()
    await expect(waiting).to_contain_text("Waiting for 2 of 3 clients")
    federation.start_client("site-1", "digits,blocks=1", fault="never")
    await expect(waiting).to_contain_text("Waiting for 1 of 3 clients")
    federation.rest.post(f"/runs/{run_id}/stop")
    await expect(waiting).to_have_count(0)
    assert await dashboard.is_untouched()


async def test_curve_is_shown_although_rounds_are_faster_than_answers(
    dashboard: Dashboard, federation: Federation
) -> None:
    async def late(route: Route) -> None:
        await asyncio.sleep(LATE_SECONDS)
        # The page may have given the request up.
        with contextlib.suppress(Error):
            await route.continue_()

    run_id = federation.submit({**LONG, "name": "swift"})
    await dashboard.page.route("**/metrics*", late)
    page = await dashboard.open(federation.http_address, f"runs/{run_id}")
    await expect(page.get_by_role("img", name="Accuracy over the rounds")).to_be_visible()
    assert federation.run(run_id)["state"] == "running"
    await page.unroute_all(behavior="wait")
    federation.rest.post(f"/runs/{run_id}/stop")


async def test_page_comes_back_by_itself_after_the_coordinator_was_killed(
    dashboard: Dashboard, federation: Federation
) -> None:
    run_id = federation.submit({**LONG, "name": "survives"})
    page = await dashboard.open(federation.http_address, f"runs/{run_id}")
    await expect(page.get_by_role("heading", level=1)).to_contain_text("survives")
    await expect(page.get_by_role("status").first).to_have_text("Live")
    # What a browser says of a server that is away.
    dashboard.tolerated.append("net::ERR_")
    assert federation.coordinator is not None
    federation.coordinator.kill()
    await expect(page.get_by_role("status").first).to_have_text("Reconnecting …")
    await expect(page.get_by_role("heading", level=1)).to_contain_text("survives")
    federation.start_coordinator()
    await expect(page.get_by_role("status").first).to_have_text("Live")
    federation.wait_for_clients(2)
    federation.rest.post(f"/runs/{run_id}/stop")
    await expect(page.get_by_role("heading", level=1)).to_contain_text("Stopped")
    assert await dashboard.is_untouched()


@pytest.mark.parametrize("place", ["runs", "runs/{run_id}"])
async def test_wait_is_not_counted_down_while_the_coordinator_is_away(
    dashboard: Dashboard, federation: Federation, place: str
) -> None:
    # A third client never comes.
    run_id = federation.submit({**SPEC, "name": "waits", "cohort": {"size": 3, "wait_seconds": 3_600}})
    page = await dashboard.open(federation.http_address, place.format(run_id=run_id))
    waiting = page.locator(".waiting")
    counted = re.compile(r"Waiting for 1 of 3 clients, \d+ min( \d+ s)? left")
    await expect(waiting).to_have_text(counted)
    if "{" in place:
        await expect(page.get_by_label("State of the run")).to_contain_text("Round 1, select · Started ")
        await expect(card(page, "Round, client by client")).to_contain_text("No client has been asked yet.")
    dashboard.tolerated.append("net::ERR_")
    assert federation.coordinator is not None
    federation.coordinator.kill()
    await expect(waiting).to_have_text(re.compile(r"The coordinator has not answered since \d\d:\d\d"))
    federation.start_coordinator()
    # Whoever is back counts anew.
    federation.wait_for_clients(2)
    await expect(waiting).to_have_text(counted)
    federation.rest.post(f"/runs/{run_id}/stop")
    assert await dashboard.is_untouched()


async def test_nobody_is_seen_now_while_the_coordinator_is_away(dashboard: Dashboard, federation: Federation) -> None:
    federation.wait_for_clients(2)
    page = await dashboard.open(federation.http_address, "clients?state=connected")
    seen = page.get_by_role("row").nth(1).get_by_role("cell").last
    await expect(seen).to_have_text("now")
    dashboard.tolerated.append("net::ERR_")
    assert federation.coordinator is not None
    federation.coordinator.kill()
    await expect(seen).to_have_text(re.compile("just now|ago"))
    federation.start_coordinator()
    federation.wait_for_clients(2)
    await expect(seen).to_have_text("now")
    assert await dashboard.is_untouched()


async def test_spec_is_checked_again_after_the_coordinator_was_away(
    dashboard: Dashboard, federation: Federation
) -> None:
    page = await dashboard.open(federation.http_address, "submit")
    verdict = page.locator(".verdict")
    await expect(verdict).to_have_text("The spec is sound.")
    dashboard.tolerated.append("net::ERR_")
    assert federation.coordinator is not None
    federation.coordinator.kill()
    await page.locator("#rounds").fill("7")
    await expect(page.get_by_role("alert")).to_contain_text("The coordinator does not answer.")
    federation.start_coordinator()
    await expect(verdict).to_have_text("The spec is sound.")
    await expect(page.get_by_role("alert")).to_have_count(0)
    await expect(page.get_by_role("button", name="Submit run")).to_be_enabled()
    assert await dashboard.is_untouched()


async def test_pages_that_are_opened_while_the_coordinator_is_away_come_with_it(
    dashboard: Dashboard, federation: Federation
) -> None:
    page = await dashboard.open(federation.http_address, "system")
    health = card(page, "Coordinator")
    await expect(health).to_contain_text("StatusWell")
    dashboard.tolerated.append("net::ERR_")
    assert federation.coordinator is not None
    federation.coordinator.kill()
    # Nobody is well who does not answer.
    await expect(health.get_by_role("alert")).to_contain_text("The coordinator does not answer.")
    await expect(health).not_to_contain_text("Well")
    await page.evaluate("location.hash = '#/submit'")
    await expect(page.get_by_role("alert")).to_contain_text("The coordinator does not answer.")
    federation.start_coordinator()
    await expect(page.locator(".verdict")).to_have_text("The spec is sound.")
    await page.evaluate("location.hash = '#/system'")
    await expect(health).to_contain_text("StatusWell")
    assert await dashboard.is_untouched()


async def tab_to(page: Page, target: str) -> None:
    """Press the tab key until something with a name, or "#" and an id, has the focus; each stop on the way must be seen to have it."""
    for _ in range(MOST_STOPS):
        await page.keyboard.press("Tab")
        stop = await page.evaluate(
            """() => {
                const here = document.activeElement;
                const { outlineStyle, boxShadow } = getComputedStyle(here);
                const { left, top, width, height } = here.getBoundingClientRect();
                const isBare = here.contains(document.elementFromPoint(left + width / 2, top + height / 2));
                // Between its last stop and its first, a page has none.
                const isSeen = here === document.body || (isBare && (outlineStyle !== "none" || boxShadow !== "none"));
                return [here.innerText, `#${here.id}`, isSeen, here.outerHTML];
            }"""
        )
        assert stop[2], f"nothing shows that this has the focus: {stop[3][:200]}"
        if target in stop[:2]:
            return
    raise AssertionError(f"{target} was not reached by {MOST_STOPS} presses of the tab key")
