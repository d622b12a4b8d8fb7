"""The pages of a service: in the style of choral's other pages, with nothing inline and nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from importlib import resources
from typing import Any

from choral.analysis.page.frame import ICON, embedded
from choral.analysis.page.markup import Markup

STYLE, SCRIPT = "/assets/page.css", "/assets/page.js"
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
}
_FOOT = Markup(
    'Images go to this service and nowhere else; none is kept. <a href="/">Ask</a> · <a href="/docs">API</a> · '
    '<a href="/model">Model</a> · <a href="/metrics">Metrics</a>'
)


def front_page(data: Mapping[str, Any]) -> str:
    """Return the page that takes images and shows answers; `data` is what /model tells."""
    return shell(str(data["name"]), str(data["about"]), Markup(_file("choral.deploy.serve", "assets/front.html")), data)


def shell(title: str, subtitle: str, body: Markup, data: Mapping[str, Any] | None = None) -> str:
    """Return a whole page.

    Args:
        title: its heading.
        subtitle: a line below it.
        body: of its main part.
        data: plain JSON that the script finds in `#data`; None: no script.
    """
    script = f'<script src="{SCRIPT}" defer></script>' if data is not None else ""
    block = f'<script type="application/json" id="data">{embedded(data)}</script>' if data is not None else ""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="{ICON}">
<title>{escape(title)}</title>
<link rel="stylesheet" href="{STYLE}">
{script}
</head>
<body class="service">
<a class="skip" href="#main">Skip to the content</a>
<header class="top"><h1>{escape(title)}</h1><p class="subtitle">{escape(subtitle)}</p></header>
<main id="main" tabindex="-1">
{'<noscript><p class="empty">This page needs JavaScript; POST /predict does not.</p></noscript>' if script else ""}
{body}
</main>
<footer><p>{_FOOT}</p></footer>
{block}
</body>
</html>
"""


def style() -> str:
    """Return the style sheet: that of all pages, and what is special here."""
    return _file("choral.analysis.page", "page.css") + _file("choral.deploy.serve", "assets/serve.css")


def script() -> str:
    """Return the script: what all pages share, and this one's."""
    return _file("choral.analysis.page", "core.js") + _file("choral.deploy.serve", "assets/serve.js")


def _file(package: str, name: str) -> str:
    return resources.files(package).joinpath(name).read_text(encoding="utf-8")
