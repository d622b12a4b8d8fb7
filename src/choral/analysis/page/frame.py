"""The frame of a page: one HTML file that needs no network, in light and dark, and runs no script but its own.

What data, configs and file names say never becomes markup: Python escapes it (`Markup` is made by the functions of
`choral.analysis.page.markup` alone), and scripts read it from JSON and set it as text. A Content-Security-Policy allows the
style sheet and the script by their checksums and images by `data:`, and nothing else: no request can leave the page.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from choral.analysis.page.markup import NOTHING, Markup

_STYLES = "page.css"
_INPUTS = "choral-inputs"
_HEAD = 4096  # bytes in which it stands
ICON = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E%3Cg fill='%233a6ea5'%3E"
    "%3Crect x='1' y='8' width='3.4' height='7' rx='1'/%3E%3Crect x='6.3' y='4' width='3.4' height='11' rx='1'/%3E"
    "%3Crect x='11.6' y='1' width='3.4' height='14' rx='1'/%3E%3C/g%3E%3C/svg%3E"
)


@dataclass(frozen=True)
class Section:
    """A part of a page, with an entry in its contents.

    Attributes:
        id: of the element, for links and scripts: letters, digits and hyphens.
        title: its heading.
        lead: a sentence below it.
        body: what stands there before scripts run; scripts may add to the element `.body` of the section.
        count: beside its entry in the contents, such as "12"; "": none.
    """

    id: str
    title: str
    lead: str = ""
    body: Markup = NOTHING
    count: str = ""


def page(
    title: str,
    sections: Sequence[Section],
    data: Mapping[str, Any] | None = None,
    *,
    subtitle: str = "",
    scripts: Sequence[str] = (),
    pictures: Mapping[str, Any] | None = None,
    foot: str = "",
    inputs: str = "",
) -> str:
    """Return a whole HTML page.

    Args:
        title: of the page.
        sections: in their order.
        data: plain JSON without NaN that scripts find in the element `#data`.
        subtitle: a line below the title.
        scripts: files of this package that are run, in this order, as one script.
        pictures: plain JSON in an element `#pictures` of its own, which scripts can read later than the rest.
        foot: a line at the end.
        inputs: a checksum of what the page is made of, for `inputs_of_page`.
    """
    style = _file(_STYLES)
    script = "\n".join(_file(name) for name in scripts)
    blocks = [("data", data), ("pictures", pictures)]
    allowed = _checksum(script) if script else "'none'"
    policy = (
        f"default-src 'none'; script-src {allowed}; style-src {_checksum(style)}; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            '<meta name="referrer" content="no-referrer">',
            f'<meta name="{_INPUTS}" content="{escape(inputs)}">',
            f'<link rel="icon" href="{ICON}">',
            f"<title>{escape(title)}</title>",
            f"<style>{style}</style>",
            "</head>",
            "<body>",
            '<a class="skip" href="#main">Skip to the content</a>',
            f'<header class="top"><h1>{escape(title)}</h1><p class="subtitle">{escape(subtitle)}</p></header>',
            _contents(sections),
            '<main id="main" tabindex="-1">',
            "<noscript><p>Lists, filters and curves of this page need JavaScript.</p></noscript>" if script else "",
            *map(_section, sections),
            "</main>",
            f"<footer><p>{escape(foot)}</p></footer>",
            *(
                f'<script type="application/json" id="{name}">{embedded(own)}</script>'
                for name, own in blocks
                if own is not None
            ),
            f"<script>{script}</script>" if script else "",
            "</body>",
            "</html>\n",
        ]
    )


def inputs_of_page(path: Path) -> str:
    """Return the checksum of what a page was made of; "" where there is no page, or it says nothing of it."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except FileNotFoundError:
        return ""
    found = re.search(rb'<meta name="%s" content="([0-9a-f]*)">' % _INPUTS.encode(), head)
    return found[1].decode() if found else ""


def embedded(content: Mapping[str, Any]) -> str:
    """Return JSON that can stand in a script element: no text in it can end the element or begin a comment."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _contents(sections: Sequence[Section]) -> str:
    entries = "".join(
        f'<li><a href="#{one.id}">{escape(one.title)}'
        + (f' <span class="count">{escape(one.count)}</span>' if one.count else "")
        + "</a></li>"
        for one in sections
    )
    # Closed on a phone, where it is a bar; on wide screens a style sheet shows it beside the page, whatever its state.
    return f'<nav aria-label="Contents"><details><summary>Contents</summary><ol>{entries}</ol></details></nav>'


def _section(section: Section) -> str:
    lead = f'<p class="lead">{escape(section.lead)}</p>' if section.lead else ""
    return (
        f'<section id="{section.id}" aria-labelledby="{section.id}-title">'
        f'<h2 id="{section.id}-title">{escape(section.title)}</h2>{lead}<div class="body">{section.body}</div></section>'
    )


@cache
def _file(name: str) -> str:
    return resources.files("choral.analysis.page").joinpath(name).read_text(encoding="utf-8")


def _checksum(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
