"""Every page: names of others stay text, everybody can read it, it fits a phone, and what is not known is told in words."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from playwright.async_api import expect

from server.api.history import LATEST_ROUNDS
from server.coordinator import Coordinator
from server.records import Moments, RefusalRecord, RoundState, RunState
from tests.browser.dashboard import Dashboard, address_of, card
from tests.browser.seeding import store_in
from tests.loopback import serving
from tests.server.rest import stored_run
from tests.server.store.samples import make_client, make_event, make_round

pytestmark = pytest.mark.asyncio(loop_scope="module")

HOSTILE = "<img src=x onerror=window.hostile=1><script>window.hostile=1</script>"
RUN_ID = "0123456789ab"
OTHER_ID = "ba9876543210"
HELD_ID = "aaaa00000000"
UNTESTED_ID = "bbbb00000000"
SHOWN_ID = "cccc00000000"
LATELY_ID = "dddd00000000"
CLIENT_ID = "c" * 64
SITES = {"a" * 64: "bank", "b" * 64: "edge", "d" * 64: "lab", "e" * 64: "ward" * 16}
PHONE_WIDTH = 360
NONE = "\N{EN DASH}"

PLACES = {
    "runs": 2,
    f"runs/{RUN_ID}": 5,
    f"compare?runs={RUN_ID}": 1,
    "clients": 1,
    f"clients/{CLIENT_ID}": 4,
    "submit": 0,
    "system": 1,
    "nowhere": 0,
}
"""Pages, and how often at least each shows a hostile text."""
WIDE = """() => {
    if (document.documentElement.scrollWidth <= innerWidth) return "";
    const wide = [...document.body.querySelectorAll("*")].filter((part) => part.getBoundingClientRect().right > innerWidth + 1);
    return wide.slice(-3).map((part) => part.outerHTML.slice(0, 120)).join("; ");
}"""
"""What makes a page wider than its window."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def hostile(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Coordinator]:
    """A coordinator whose every text from others would like to be markup."""
    folder = tmp_path_factory.mktemp("hostile")
    before = await store_in(folder)
    await before.put_client(
        make_client(CLIENT_ID, HOSTILE).with_(device=HOSTILE, data_kind=HOSTILE, learners=[HOSTILE])
    )
    for client_id, name in SITES.items():
        await before.put_client(make_client(client_id, name))
    await before.close()
    async with serving(folder) as coordinator:
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


@pytest.mark.parametrize("place", PLACES)
async def test_page_keeps_texts_of_others_as_text_is_accessible_and_fits_a_phone(
    dashboard: Dashboard, hostile: Coordinator, place: str
) -> None:
    page = await dashboard.open(address_of(hostile), place)
    await expect(page.get_by_role("heading", level=1)).to_be_visible()
    await expect(page.get_by_label("Loading")).to_have_count(0)
    assert await page.get_by_text(HOSTILE).count() >= PLACES[place]
    assert await page.locator("img[src=x]").count() == 0
    assert await page.evaluate("window.hostile === undefined")
    assert await dashboard.violations() == []
    await page.set_viewport_size({"width": PHONE_WIDTH, "height": 740})
    assert await page.evaluate(WIDE) == ""


async def test_round_whose_moments_are_not_known_says_so(dashboard: Dashboard, hostile: Coordinator) -> None:
    # As of a simulation, and as of a round in which the coordinator was started again.
    await stored_run(hostile, OTHER_ID, RunState.PAUSED, round_number=2)
    contribution = make_round(1).contributions[0].model_copy(update={"client_id": CLIENT_ID})
    for number, moments in ((1, {}), (2, {CLIENT_ID: Moments(asked=1090.0, downloaded=1091.0, ended=1094.0)})):
        record = make_round(number, OTHER_ID, RoundState.COMMITTED).with_(
            attempt=0, selected=[CLIENT_ID], contributions=[contribution], refusals=[], moments=moments
        )
        await hostile.store.put_round(record.with_(started_time=1000.0, phase_seconds={"select": 30.0}))
    page = await dashboard.open(address_of(hostile), f"runs/{OTHER_ID}?round=1")
    timeline = card(page, "Round, client by client")
    await expect(timeline).to_contain_text("When the clients did what is not known of this round: it was simulated")
    await expect(timeline).to_contain_text("Accepted")
    await expect(timeline.locator(".track")).to_have_count(0)
    await timeline.get_by_role("button", name="Latest").click()
    await expect(timeline).to_contain_text("The clients were asked anew 1 min after the round had begun")
    await expect(timeline.locator(".track")).to_have_count(1)


async def test_client_that_did_not_evaluate_is_shown_with_its_reason(
    dashboard: Dashboard, hostile: Coordinator
) -> None:
    run = await stored_run(hostile, UNTESTED_ID, RunState.PAUSED, round_number=1)
    contribution = make_round(1).contributions[0].model_copy(update={"client_id": CLIENT_ID})
    failure = RefusalRecord(client_id=CLIENT_ID, reason="client_error", detail=HOSTILE)
    record = make_round(1, UNTESTED_ID, RoundState.COMMITTED).with_(
        attempt=0,
        selected=[CLIENT_ID],
        contributions=[contribution],
        refusals=[],
        evaluation_failures=[failure],
    )
    await hostile.store.commit_round(run, record)
    page = await dashboard.open(address_of(hostile), f"runs/{UNTESTED_ID}")
    timeline = card(page, "Round, client by client")
    await expect(timeline).to_contain_text("1 asked: 1 accepted. 1 did not evaluate the new model.")
    await expect(timeline).to_contain_text(f"AcceptedNot evaluated: client error{HOSTILE}")
    page = await dashboard.open(address_of(hostile), f"clients/{CLIENT_ID}")
    await expect(card(page, "Refused or failed")).to_contain_text(f"Evaluationclient error{HOSTILE}")

    assert await page.evaluate("window.hostile === undefined")


async def test_run_that_stands_still_shows_whom_its_round_refused(dashboard: Dashboard, hostile: Coordinator) -> None:
    await stored_run(hostile, HELD_ID, RunState.PAUSED)
    await hostile.store.put_round(make_round(1, HELD_ID).with_(selected=[]))
    page = await dashboard.open(address_of(hostile), f"runs/{HELD_ID}")
    refused = card(page, "Refused in round 1").get_by_role("row")
    await expect(refused).to_have_count(2)
    await expect(refused.last).to_contain_text("bennot finitecoordinate 3")


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


async def test_round_shows_when_each_client_did_what(dashboard: Dashboard, hostile: Coordinator) -> None:
    whole, late, refused, _ = SITES
    moments = {
        whole: Moments(asked=1000.0, downloaded=1001.0, trained=1005.0, uploaded=1008.0, ended=1008.0),
        late: Moments(asked=1000.0, downloaded=1002.0, ended=1010.0),
        refused: Moments(asked=1000.0, downloaded=1001.0, trained=1002.5, uploaded=1003.0, ended=1003.0),
    }
    record = make_round(1, SHOWN_ID, RoundState.COMMITTED).with_(
        attempt=0,
        selected=[whole, late, refused],
        contributions=[make_round(1).contributions[0].model_copy(update={"client_id": whole})],
        refusals=[RefusalRecord(client_id=refused, reason="not_finite", detail="coordinate 3")],
        moments=moments,
        started_time=1000.0,
    )
    run = await stored_run(hostile, SHOWN_ID, RunState.PAUSED, round_number=1)
    await hostile.store.commit_round(run, record)
    page = await dashboard.open(address_of(hostile), f"runs/{SHOWN_ID}")
    timeline = card(page, "Round, client by client")
    await expect(timeline).to_contain_text("3 asked: 1 accepted, 1 refused, 1 fell out.")
    assert await timeline.locator("tbody tr").evaluate_all(STRETCHES) == [
        ["b", "download 0 20", "wait 20 100", "lost", "Fell out"],
        ["a", "download 0 10", "train 10 50", "upload 50 80", "Accepted"],
        ["d", "download 0 10", "train 10 25", "upload 25 30", "refused", "Refused: not finitecoordinate 3"],
    ]
    await timeline.get_by_text("As a table").click()
    rows = timeline.get_by_role("table", name="When the clients of round 1 did what").get_by_role("row")
    await expect(rows).to_have_count(4)
    assert [(await row.inner_text()).split("\t")[2:] for row in await rows.all()] == [
        ["Download", "Train", "Upload", "In all"],
        ["2.0 s", NONE, NONE, "10 s"],
        ["1.0 s", "4.0 s", "3.0 s", "8.0 s"],
        ["1.0 s", "1.5 s", "500 ms", "3.0 s"],
    ]
    assert await dashboard.violations() == []
    # Bytes of updates that were not taken are not in the sum.
    await expect(card(page, "Participation").get_by_role("row").last).to_contain_text("0 of 1 (0 %)1 not finite0 B")
    await page.set_viewport_size({"width": PHONE_WIDTH, "height": 740})
    scale = timeline.get_by_text("10 s", exact=True).first
    await scale.scroll_into_view_if_needed()
    await expect(scale).to_be_in_viewport(ratio=1)
    assert await page.evaluate(WIDE) == ""


STRETCHES = """(rows) => rows.map((row) => {
    const parts = [...row.querySelectorAll(".stretch")].map(({ dataset, style }) => {
        const left = parseFloat(style.left);
        return `${dataset.part} ${Math.round(left)} ${Math.round(left + parseFloat(style.width))}`;
    });
    const end = row.querySelector(".stretch-end");
    return [row.querySelector("a").title[0], ...parts, ...(end ? [end.dataset.outcome] : []), row.cells[2].textContent];
})"""
"""Of each row of a timeline: the client, its stretches with where they begin and end in percent, its mark, and its outcome."""


async def test_short_words_stay_whole_beside_a_long_name(dashboard: Dashboard, hostile: Coordinator) -> None:
    page = await dashboard.open(address_of(hostile), "clients?search=ward")
    cells = page.get_by_role("table", name="Clients").get_by_role("cell")
    await expect(cells.first).to_be_visible()
    for text in ("cpu", "images"):
        # Where a line is broken, its text has another box.
        assert await cells.filter(has_text=text).evaluate(LINES) == 1


LINES = """(cell) => {
    const text = document.createRange();
    text.selectNodeContents(cell);
    return text.getClientRects().length;
}"""
"""On how many lines the text of a cell is."""


async def test_client_of_whom_the_last_rounds_tell_nothing_has_not_contributed_nothing(
    dashboard: Dashboard, hostile: Coordinator
) -> None:
    client_id = list(SITES)[-1]
    run = await stored_run(hostile, LATELY_ID, RunState.PAUSED, round_number=LATEST_ROUNDS + 1)
    contribution = make_round(1).contributions[0].model_copy(update={"client_id": client_id})
    for number in range(1, LATEST_ROUNDS + 2):
        record = make_round(number, LATELY_ID, RoundState.COMMITTED).with_(
            selected=[client_id], contributions=[contribution] if number == 1 else [], refusals=[]
        )
        await hostile.store.commit_round(run.with_(round_number=number), record)
    page = await dashboard.open(address_of(hostile), f"clients/{client_id}")
    await expect(card(page, "Latest contributions")).to_contain_text("none of the last rounds that asked it")
