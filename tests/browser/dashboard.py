"""The dashboard in a real browser, with a watch for what no page may ever do."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from playwright.async_api import ConsoleMessage, Locator, Page, Request

from server.coordinator import Coordinator

AXE = Path(__file__).parent / "vendor" / "axe-core" / "axe.min.js"
VIOLATIONS = """async () => {
    const { violations } = await axe.run(document, { runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"] });
    return violations.flatMap(({ id, nodes }) => nodes.map((node) => `${id}: ${node.html.slice(0, 200)} ${node.failureSummary}`));
}"""
UNTOUCHED = "window.isUntouched"
"""A variable that a page has until it is loaded again."""


@dataclass
class Dashboard:
    """A page of the browser, and what went wrong on it.

    Attributes:
        faults: Errors of its console and its scripts, and requests to another origin.
        tolerated: Words of the errors that a test brings about itself.
        sent_bytes: What the coordinator has sent, compressed as it was, with headers.
    """

    page: Page
    faults: list[str] = field(default_factory=list)
    tolerated: list[str] = field(default_factory=list)
    sent_bytes: float = 0
    _origin: str = ""

    async def watch(self) -> None:
        """Begin to take notes."""
        self.page.on("console", self._note_console)
        self.page.on("pageerror", lambda error: self.faults.append(f"error of a script: {error}"))
        self.page.on("request", self._note_request)
        session = await self.page.context.new_cdp_session(self.page)
        await session.send("Network.enable")
        session.on("Network.loadingFinished", self._note_bytes)

    async def open(self, address: str, place: str = "runs") -> Page:
        """Open a place of the dashboard that is served at an address, from nothing."""
        self._origin = f"http://{address}"
        await self.page.goto("about:blank")
        await self.page.goto(f"{self._origin}/#/{place}")
        await self.page.evaluate(f"{UNTOUCHED} = true")
        return self.page

    async def is_untouched(self) -> bool:
        """Tell whether the page was not loaded again since `open`."""
        return bool(await self.page.evaluate(f"{UNTOUCHED} === true"))

    async def violations(self) -> list[str]:
        """Return what on the page, as it is now, breaks a rule of WCAG 2.2 A or AA in light or in dark, as far as axe-core can tell."""
        await self.page.evaluate(AXE.read_text())
        found = []
        schemes: tuple[Literal["light", "dark"], ...] = ("light", "dark")
        for scheme in schemes:
            await self.page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
            found += [f"{scheme}: {violation}" for violation in await self.page.evaluate(VIOLATIONS)]
        return found

    def complaints(self) -> list[str]:
        """Return the faults but those that a test brought about."""
        return [fault for fault in self.faults if not any(word in fault for word in self.tolerated)]

    def _note_console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.faults.append(f"console, {message.type}: {message.text} ({message.location['url']})")

    def _note_request(self, request: Request) -> None:
        url = urlsplit(request.url)
        if url.scheme not in ("blob", "about") and f"{url.scheme}://{url.netloc}" != self._origin:
            self.faults.append(f"request to another origin: {request.url}")

    def _note_bytes(self, event: dict[str, float]) -> None:
        self.sent_bytes += event["encodedDataLength"]


def address_of(coordinator: Coordinator) -> str:
    """Return where a coordinator of this process serves its dashboard."""
    return str(coordinator.http_address)


def card(page: Page, title: str) -> Locator:
    """Return the part of a page with a heading."""
    return page.get_by_role("region", name=title, exact=True)


def run_of(page: Page) -> str:
    """Return the identity of the run whose page is shown."""
    found = re.search(r"#/runs/(\w{12})$", page.url)
    assert found, page.url
    return found[1]
