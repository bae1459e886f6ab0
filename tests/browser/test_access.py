"""Who may look and who may steer, as the browser shows it."""

from pathlib import Path
from typing import Literal

import pytest
from playwright.async_api import expect

from server.access import gate
from server.access.attempts import MOST_FAILURES
from server.records import Role, RunState
from tests.browser.dashboard import Dashboard, address_of
from tests.loopback import serving
from tests.server.rest import calling, new_token, stored_run
from tests.server.store.samples import make_event, make_token

pytestmark = pytest.mark.asyncio(loop_scope="module")

WRONG = "chrl_none"
RUN_ID = "0123456789ab"


async def test_token_that_is_wrong_is_refused_in_words_and_a_right_one_lets_in(
    dashboard: Dashboard, tmp_path: Path
) -> None:
    # What a browser says of an answer that is no success.
    dashboard.tolerated.append("401 (Unauthorized)")
    async with serving(tmp_path) as coordinator:
        secret = await new_token(coordinator, Role.OPERATOR)
        page = await dashboard.open(address_of(coordinator))
        await expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
        await expect(page.get_by_role("alert")).to_have_count(0)
        await page.get_by_label("Token").fill(WRONG)
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("alert")).to_contain_text(
            "The token was refused. A valid bearer token must be given"
        )
        await expect(page.get_by_role("heading", name="Runs")).to_have_count(0)
        assert await dashboard.violations() == []
        await page.get_by_label("Token").fill(secret)
        await page.get_by_role("button", name="Sign in").click()
        await expect(page.get_by_role("heading", name="Runs")).to_be_visible()
        await expect(page.get_by_role("status").first).to_have_text("Live")
        # It is kept for this tab alone, and nowhere that is written down.
        assert secret not in page.url
        assert secret not in await page.evaluate("JSON.stringify(localStorage) + document.cookie")
        await page.get_by_role("button", name="Sign out").click()
        await expect(page.get_by_role("heading", name="Sign in")).to_be_visible()


async def test_who_has_to_wait_after_wrong_tokens_is_told_how_long_and_may_try_another(
    dashboard: Dashboard, tmp_path: Path
) -> None:
    dashboard.tolerated += ["401 (Unauthorized)", "429 (Too Many Requests)"]
    async with serving(tmp_path) as coordinator:
        await new_token(coordinator, Role.OPERATOR)
        async with calling(coordinator, WRONG) as client:
            for _ in range(MOST_FAILURES):
                assert (await client.get("/me")).status_code == 401
        page = await dashboard.open(address_of(coordinator))
        await expect(page.get_by_role("alert")).to_contain_text(f" s after {MOST_FAILURES} tokens that were not valid.")
        await expect(page.get_by_role("alert")).not_to_contain_text("The token was refused.")
        assert await dashboard.violations() == []
        await page.get_by_label("Token").fill(WRONG)
        await page.get_by_role("button", name="Sign in").click()
        await expect(page.get_by_label("Token")).to_be_enabled()


async def test_page_whose_token_is_revoked_tells_nothing_more(
    dashboard: Dashboard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "LOOK_SECONDS", 0.0)
    dashboard.tolerated.append("401 (Unauthorized)")
    async with serving(tmp_path) as coordinator:
        secret = await new_token(coordinator, Role.VIEWER)
        page = await dashboard.open(address_of(coordinator), "system")
        await page.get_by_label("Token").fill(secret)
        await page.keyboard.press("Enter")
        await expect(page.get_by_role("status").first).to_have_text("Live")
        await coordinator.store.add_token(make_token("other", "cd" * 32))
        await coordinator.store.remove_token(Role.VIEWER)
        await coordinator.store.append_event(make_event("run_failed", RUN_ID).with_(detail="secret"))
        await expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
        await expect(page.get_by_role("alert")).to_contain_text("The token was refused.")
        await expect(page.get_by_text("secret")).to_have_count(0)


async def test_viewer_is_shown_no_button_that_an_operator_has(dashboard: Dashboard, tmp_path: Path) -> None:
    dashboard.tolerated.append("401 (Unauthorized)")
    async with serving(tmp_path) as coordinator:
        await stored_run(coordinator, RUN_ID, RunState.PAUSED)
        secrets = [await new_token(coordinator, role) for role in (Role.OPERATOR, Role.VIEWER)]
        found = []
        for secret in secrets:
            page = await dashboard.open(address_of(coordinator), f"runs/{RUN_ID}")
            await page.get_by_label("Token").fill(secret)
            await page.keyboard.press("Enter")
            await expect(page.get_by_role("heading", level=1)).to_contain_text("Paused")
            buttons = [page.get_by_role(role, name=name, exact=True) for role, name in STEERING]
            found.append([await button.count() for button in buttons])
            await page.evaluate("location.hash = '#/submit'")
            place = (
                page.get_by_role("heading", name="New run")
                if secret == secrets[0]
                else page.get_by_text("There is no such page.")
            )
            await expect(place).to_be_visible()
            await page.get_by_role("button", name="Sign out").click()
            await expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
        assert found == [[1] * len(STEERING), [0] * len(STEERING)]


STEERING: tuple[tuple[Literal["link", "button"], str], ...] = (
    ("link", "New run"),
    ("button", "Resume"),
    ("button", "Stop"),
    ("button", "Clone"),
)
