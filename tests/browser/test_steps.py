"""What people do on a page, step by step: search, pick, type and press, also what they should not."""

import re
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import Request, Route, expect

from server.coordinator import Coordinator
from server.records import EventRecord, RunState
from tests.browser.dashboard import Dashboard, address_of, card
from tests.browser.seeding import CLIENT_IDS, add_clients, add_run, store_in
from tests.loopback import serving
from wire.secure import PrivacySpec, SecureAggregationSpec
from wire.spec import EvaluateSpec

pytestmark = pytest.mark.asyncio(loop_scope="module")

RUN_ID = f"{1:012x}"
NO_RUN_ID = "ba9876543210"
OTHER_ID = "aaaa00000000"
LIVE_ID = "bbbb00000000"
MASKED_ID = "cccc00000000"
LOOK_MILLISECONDS = 400
"""What is left of a second for a page after news have come to it, in which they may wait for each other for 0.6 s."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def coordinator(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Coordinator]:
    """A coordinator with one run, of two rounds."""
    folder = tmp_path_factory.mktemp("steps")
    store = await store_in(folder)
    await add_clients(store)
    assert await add_run(store, 1, 2) == RUN_ID
    await store.close()
    async with serving(folder) as coordinator:
        yield coordinator


async def test_search_that_found_nothing_is_emptied_with_its_filter(
    dashboard: Dashboard, coordinator: Coordinator
) -> None:
    page = await dashboard.open(address_of(coordinator))
    search = page.get_by_label("Search by name or identity")
    await search.fill("no such name")
    await page.get_by_role("button", name="Show all runs").click()
    await expect(page.locator(".runs .run")).to_have_count(1)
    await expect(search).to_have_value("")


async def test_run_that_there_is_not_is_left_out_of_a_comparison(
    dashboard: Dashboard, coordinator: Coordinator
) -> None:
    dashboard.tolerated.append("404 (Not Found)")
    page = await dashboard.open(address_of(coordinator), f"compare?runs={NO_RUN_ID},{RUN_ID},{RUN_ID}")
    await expect(page.get_by_role("alert")).to_contain_text(f"There is no run {NO_RUN_ID}.")
    await expect(card(page, "What they reached").get_by_role("row")).to_have_count(2)
    assert await dashboard.violations() == []
    await page.get_by_role("button", name="Leave it out").click()
    await expect(page.get_by_role("alert")).to_have_count(0)
    await expect(page.get_by_label("Runs in this chart").get_by_role("listitem")).to_have_count(1)


async def test_six_runs_are_the_most_of_one_chart(dashboard: Dashboard, tmp_path: Path) -> None:
    store = await store_in(tmp_path)
    await add_clients(store)
    # One is longer than the others, one is a single point.
    run_ids = [await add_run(store, number, rounds) for number, rounds in enumerate((3, 2, 2, 1, 2, 2, 2), start=1)]
    await store.close()
    async with serving(tmp_path) as coordinator:
        page = await dashboard.open(address_of(coordinator), f"compare?runs={','.join(run_ids[:5])}")
        await page.get_by_text("Add a run").click()
        await page.get_by_role("button", name="run-6").click()
        chart = page.get_by_role("img", name="Accuracy of 6 runs")
        words = re.compile(r"Rounds 1 to 3: run-1 0000 from .*; run-6 0000 from ")
        await expect(chart).to_have_attribute("aria-label", words)
        await expect(page.get_by_label("Runs in this chart").get_by_role("listitem")).to_have_count(6)
        await expect(card(page, "What they reached").get_by_role("row")).to_have_count(7)
        await expect(page.get_by_text("Six runs are the most for one chart.")).to_be_visible()
        await expect(page.get_by_text("Add a run")).to_have_count(0)
        # Each line has a mark of its own.
        marks = page.locator(".line-mark")
        looks = await marks.evaluate_all("(all) => all.map((one) => one.dataset.line)")
        assert looks == ["1", "2", "3", "4", "5", "6"]
        assert await dashboard.violations() == []
        # A seventh, as of a link that somebody wrote, is left out.
        await page.evaluate(f"location.hash = '#/compare?runs={','.join(run_ids)}'")
        await expect(page.get_by_label("Runs in this chart").get_by_role("listitem")).to_have_count(6)
        await expect(chart).not_to_have_attribute("aria-label", re.compile("run-7"))


async def test_text_that_cannot_be_read_is_not_submitted(dashboard: Dashboard, coordinator: Coordinator) -> None:
    page = await dashboard.open(address_of(coordinator), "submit")
    text, submit = page.get_by_label("The spec as text"), page.get_by_role("button", name="Submit run")
    await expect(submit).to_be_enabled()
    # Keys and names of learners are no words of a language.
    for field in (text, page.locator("#name")):
        assert await field.evaluate("(field) => field.spellcheck") is False
    await text.fill(await text.input_value() + "rounds: [\n")
    problem = page.locator("#spec-text-problem")
    await expect(problem).to_contain_text("in line")
    await expect(submit).to_be_disabled()
    await expect(page.locator(".verdict")).to_contain_text("The spec as text cannot be read.")
    assert await dashboard.violations() == []
    # A button that cannot be pressed yet is read all the same.
    assert await submit.evaluate(CONTRAST) > 4.5
    # What is changed in the form is written anew beside it.
    await page.locator("#rounds").fill("4")
    await expect(problem).to_be_empty()
    await expect(text).not_to_have_value("rounds: [")
    await expect(submit).to_be_enabled()


CONTRAST = """(part) => {
    const { color, backgroundColor, opacity } = getComputedStyle(part);
    const light = (text) => {
        const parts = text.match(/[\\d.]+/g).slice(0, 3).map((one) => one / 255);
        const [red, green, blue] = parts.map((one) => (one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4));
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue + 0.05;
    };
    const [low, high] = [light(color), light(backgroundColor)].sort((a, b) => a - b);
    return opacity === "1" ? high / low : 1;
}"""
"""How much the text of a part stands out, as WCAG 2.2 has it in 1.4.3, which leaves out what cannot be pressed."""


async def test_list_of_runs_to_add_is_left_by_the_escape_key(dashboard: Dashboard, coordinator: Coordinator) -> None:
    page = await dashboard.open(address_of(coordinator), "compare")
    summary = page.get_by_text("Add a run")
    await summary.click()
    search = page.get_by_label("Search runs to add")
    await search.fill("run")
    await page.keyboard.press("Escape")
    await expect(search).to_be_hidden()
    await expect(summary).to_be_focused()


async def test_button_that_is_pressed_twice_clones_a_run_once(dashboard: Dashboard, coordinator: Coordinator) -> None:
    asked: list[Request] = []

    async def refuse(route: Route) -> None:
        asked.append(route.request)
        await route.fulfill(status=503, json={"detail": "Nothing was changed."})

    dashboard.tolerated.append("503 (Service Unavailable)")
    await dashboard.page.route("**/clone", refuse)
    page = await dashboard.open(address_of(coordinator), f"runs/{RUN_ID}")
    await page.get_by_role("button", name="Clone").click()
    await page.get_by_role("button", name="Run again").dblclick()
    await expect(page.get_by_role("dialog").get_by_role("alert")).to_contain_text("Nothing was changed.")
    assert len(asked) == 1
    await expect(page.get_by_role("button", name="Run again")).to_be_enabled()


async def test_events_name_runs_and_clients(dashboard: Dashboard, coordinator: Coordinator) -> None:
    event = EventRecord(time=1.0, kind="round_committed", run_id=RUN_ID, client_id=CLIENT_IDS[1], detail="round 2")
    await coordinator.store.append_event(event)
    page = await dashboard.open(address_of(coordinator), "system")
    told = card(page, "Latest events").get_by_role("listitem").first
    await expect(told).to_contain_text(f"Round committed · round 2 run-1 {RUN_ID} site-1 {CLIENT_IDS[1][:12]}")
    # What has no name any more is told by its identity.
    await coordinator.store.append_event(event.model_copy(update={"run_id": NO_RUN_ID, "client_id": "", "detail": ""}))
    await expect(told).to_contain_text(f"Round committed {NO_RUN_ID}")


async def test_model_card_that_cannot_be_saved_says_so(dashboard: Dashboard, coordinator: Coordinator) -> None:
    dashboard.tolerated += ["net::ERR_", "404 (Not Found)"]
    page = await dashboard.open(address_of(coordinator), f"runs/{RUN_ID}")
    await page.get_by_role("button", name="Model card").click()
    dialog = page.get_by_role("dialog")
    await expect(dialog.get_by_label("Loading")).to_have_count(0)
    await page.route("**/card", lambda route: route.abort())
    told = dialog.get_by_text("The coordinator does not answer.")
    await expect(told).to_have_count(0)
    await dialog.get_by_role("button", name="Save as JSON").click()
    await expect(told).to_be_visible()


async def test_curve_of_what_the_coordinator_measured_is_not_called_a_mean_over_clients(
    dashboard: Dashboard, coordinator: Coordinator
) -> None:
    # Its copy has no rounds of its own.
    dashboard.tolerated.append("404 (Not Found)")
    run = await coordinator.store.run(RUN_ID)
    spec = run.spec.model_copy(update={"evaluate": EvaluateSpec(on="coordinator")})
    await coordinator.store.put_run(run.with_(run_id=OTHER_ID, spec=spec))
    for run_id, words in (
        (RUN_ID, "Line: mean over the clients, weighted by examples."),
        (OTHER_ID, "Line: measured on the coordinator's own data."),
    ):
        page = await dashboard.open(address_of(coordinator), f"runs/{run_id}")
        await expect(card(page, "Learning")).to_contain_text(words)


async def test_news_are_on_every_part_of_a_runs_page_within_a_second(
    dashboard: Dashboard, coordinator: Coordinator
) -> None:
    store, page = coordinator.store, dashboard.page
    run = (await store.run(RUN_ID)).with_(run_id=LIVE_ID, state=RunState.PAUSED)
    await store.put_run(run)
    first, second = [record.model_copy(update={"run_id": LIVE_ID}) for record in await store.rounds(RUN_ID, 0, 2)]
    await store.commit_round(run.with_(round_number=1), first)
    await page.clock.install()
    await dashboard.open(address_of(coordinator), f"runs/{LIVE_ID}")
    await expect(page.get_by_label("Loading")).to_have_count(0)
    last_round = card(page, "Participation").get_by_role("row").last.get_by_role("cell").last
    bytes_of = card(page, "Cost of a round").get_by_role("img", name="Bytes of a round.")
    await expect(last_round).to_have_text("1")
    # From here on, only as much time passes on the page as is let pass.
    await page.clock.pause_at(time.time() + 5)
    for number in (1, 2):
        event = EventRecord(time=1.0, kind="round_committed", run_id=LIVE_ID, detail=f"news {number}")
        if number == 1:
            await store.append_event(event)
        else:
            await store.commit_round(run.with_(round_number=2), second, event)
        await expect(page.get_by_text(f"news {number}")).to_be_visible()
        # The first is told at once. What follows waits for its turn.
        await page.clock.run_for(LOOK_MILLISECONDS)
        await expect(page.get_by_label("Loading")).to_have_count(0)
    await expect(last_round).to_have_text("2")
    await expect(bytes_of).to_have_attribute("aria-label", re.compile("Rounds 1 to 2:"))


async def test_what_protects_the_clients_of_a_masked_run_is_told_in_its_numbers(
    dashboard: Dashboard, coordinator: Coordinator
) -> None:
    run = await coordinator.store.run(RUN_ID)
    masking = SecureAggregationSpec(corrupt_fraction=0.25, dropout_fraction=0.125, minimum_cohort=5, metrics=["loss"])
    spec = run.spec.model_copy(update={"privacy": PrivacySpec(secure_aggregation=masking)})
    await coordinator.store.put_run(run.with_(run_id=MASKED_ID, spec=spec, round_number=0, state=RunState.PAUSED))
    for run_id, words in (
        (RUN_ID, ["Secure aggregation is off: this coordinator sees the update of each client."]),
        (
            MASKED_ID,
            [
                "learns only the sum of a round",
                "25 % may conspire",
                "12.5 % may fall out",
                "at least 5 honest clients",
                "only sums of loss leave",
            ],
        ),
    ):
        page = await dashboard.open(address_of(coordinator), f"runs/{run_id}")
        for part in (*words, "Differential privacy is off"):
            await expect(card(page, "Privacy")).to_contain_text(part)


async def test_numbers_are_rounded_to_none_that_they_are_not(dashboard: Dashboard, coordinator: Coordinator) -> None:
    page = await dashboard.open(address_of(coordinator))
    written = await page.evaluate(
        """async () => {
            const { bytes, percent, seconds } = await import("/dashboard/format.js");
            return [
                [0, 0.0002, 0.056, 0.123, 0.9, 0.9996, 1].map(percent),
                [0, 0.0002, 0.25, 0.9996, 1, 9.96, 59.4, 59.7, 61, 3599.9, 86400].map(seconds),
                [0, 999, 999_400, 999_600, 1_500_000].map(bytes),
            ];
        }"""
    )
    assert written == [
        ["0 %", "0.1 %", "5.6 %", "12 %", "90 %", "99.9 %", "100 %"],
        ["0 s", "under 1 ms", "250 ms", "1.0 s", "1.0 s", "10 s", "59 s", "1 min", "1 min 1 s", "59 min 59 s", "1 d"],
        ["0 B", "999 B", "999 kB", "1 MB", "1.5 MB"],
    ]
