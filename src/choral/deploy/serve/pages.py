"""The service's pages, in the style of choral's other pages: nothing inline, and no file from another host."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from choral.core.pages.page import BASE_STYLE, CORE_SCRIPT
from choral.core.pages.templates import read_asset, render_template

STYLE, SCRIPT = "/assets/page.css", "/assets/page.js"
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
}
_ASSETS = "deploy/serve/assets"


def render_front_page(data: Mapping[str, Any]) -> str:
    """Return the page that takes images and shows predictions.

    Args:
        data: the response of /model as plain JSON; the script finds it in the element `#data`.
    """
    return render_service_page("front.html", title=str(data["name"]), subtitle=str(data["about"]), data=data)


def render_service_page(template: str, **values: Any) -> str:
    """Return a rendered template of `deploy/serve/assets`; a page that is given `data` also loads the script."""
    return render_template(f"{_ASSETS}/{template}", style_path=STYLE, script_path=SCRIPT, **values)


def style_sheet() -> str:
    """Return the service's style sheet: the one of all pages, and the rules of this one."""
    return read_asset(BASE_STYLE) + read_asset(f"{_ASSETS}/serve.css")


def script() -> str:
    """Return the service's script: what all pages share, and this one's."""
    return read_asset(CORE_SCRIPT) + read_asset(f"{_ASSETS}/serve.js")
