"""A page opened in a browser, with its console messages and network requests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")


class Opened:
    """A page from disk.

    Attributes:
        path: of its file.
        tab: Playwright's page.
        requests: requested URLs, except `data:`.
        complaints: console messages, script errors, and dialogs such as those of `alert`.
    """

    def __init__(self, browser: Any, path: Path, width: int = 1440, height: int = 900, scheme: str = "light") -> None:
        self.path, self.requests, self.complaints = path, list[str](), list[str]()
        self._context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        self.tab = self._context.new_page()
        self.tab.on("console", lambda message: self.complaints.append(f"{message.type}: {message.text}"))
        self.tab.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.tab.on("dialog", self._refuse)
        self.tab.on("request", lambda request: self.requests.append(request.url))
        self.tab.goto(path.as_uri())
        self.requests = [address for address in self.requests if not address.startswith("data:")]

    def _refuse(self, dialog: Any) -> None:
        self.complaints.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def found(self) -> str:
        """The text of the list of samples on how many it shows."""
        return str(self.tab.inner_text("#found"))

    def keys(self) -> list[str]:
        """Keys of the displayed samples."""
        names = self.tab.eval_on_selector_all("#worst .card img", "images => images.map(image => image.alt)")
        return [str(name) for name in names]

    def choose(self, label: str, option: str) -> None:
        """Select an option of a filter."""
        self.tab.locator("#worst").get_by_label(label, exact=True).select_option(label=option)

    def overflow(self) -> tuple[int, int]:
        """Width of the content and of the window."""
        wide, window = self.tab.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        return int(wide), int(window)

    def close(self) -> None:
        """Close the page; late requests are counted."""
        self.requests = [address for address in self.requests if not address.startswith("data:")]
        self._context.close()
