"""Self-contained pages: one HTML file that needs no network, in light and dark, and runs no script but its own.

Names from data, configs and file names never become markup: the templates escape them, and scripts read them from JSON and
set them as text. A Content-Security-Policy allows the style sheet and the script by their checksums and images by `data:`,
and nothing else, so no request can leave the page.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from choral.core.pages.templates import read_asset, render_template

if TYPE_CHECKING:
    from jinja2 import Template

PAGE_TEMPLATE = "core/pages/page.html"
BASE_STYLE, CORE_SCRIPT = "core/pages/base.css", "core/pages/core.js"
_HEAD_BYTES = 4096  # of a page, within which its inputs stand


@dataclass(frozen=True)
class Section:
    """A part of a page, with an entry in its table of contents.

    Attributes:
        id: of the element, for links and scripts: letters, digits and hyphens.
        title: its heading.
        lead: a sentence below it.
        count: beside its entry in the contents, such as "12"; "": none.
    """

    id: str
    title: str
    lead: str = ""
    count: str = ""


@dataclass(frozen=True)
class Page:
    """What a self-contained page holds. All texts are plain; the template escapes them.

    Attributes:
        title: of the page.
        sections: in their order.
        subtitle: a line below the title.
        foot: a line at the end.
        data: plain JSON without NaN that scripts find in the element `#data`; None: no such element.
        images: plain JSON in the element `#images`, which scripts can parse later than the rest; None: no such element.
        inputs: checksum of what the page is made of, for `read_page_inputs`; hexadecimal.
        styles: style sheets after the shared one, by their paths in the package.
        scripts: scripts after the shared one, run in this order as one script; none: the page has no script.
        template: extends PAGE_TEMPLATE and fills the sections.
    """

    title: str
    sections: Sequence[Section]
    subtitle: str = ""
    foot: str = ""
    data: Mapping[str, Any] | None = None
    images: Mapping[str, Any] | None = None
    inputs: str = ""
    styles: Sequence[str] = ()
    scripts: Sequence[str] = ()
    template: str | Template = PAGE_TEMPLATE


def render_page(page: Page) -> str:
    """Return a page as the text of one HTML file."""
    from markupsafe import Markup

    style = "\n".join(read_asset(name) for name in (BASE_STYLE, *page.styles))
    script = "\n".join(read_asset(name) for name in (CORE_SCRIPT, *page.scripts)) if page.scripts else ""
    policy = (
        f"default-src 'none'; script-src {_checksum(script) if script else _NONE}; style-src {_checksum(style)}; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    # Our own files and checksums, not data.
    ours = {name: Markup(text) for name, text in (("style", style), ("script", script), ("policy", policy))}  # noqa: S704
    return render_template(page.template, page=page, title=page.title, subtitle=page.subtitle, foot=page.foot, **ours)


def read_page_inputs(path: Path) -> str:
    """Return the checksum of what a page was made of (`Page.inputs`); "" where there is no page, or it has none."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except FileNotFoundError:
        return ""
    found = re.search(rb'<meta name="choral-inputs" content="([0-9a-f]*)">', head)
    return found[1].decode() if found else ""


_NONE = "'none'"


def _checksum(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
