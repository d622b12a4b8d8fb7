"""Pieces of HTML whose words are escaped where they are made, so that any text may stand in them."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import NewType

Markup = NewType("Markup", str)
"""HTML that may stand in a page; made by the functions of this module alone."""
NOTHING = Markup("")


def joined(*parts: Markup) -> Markup:
    """Return pieces, one after the other."""
    return Markup("\n".join(parts))


def words(text: str, style: str = "") -> Markup:
    """Return a paragraph; `style` is a class of the style sheet, such as "note" or "empty"."""
    return Markup(f'<p class="{escape(style)}">{escape(text)}</p>' if style else f"<p>{escape(text)}</p>")


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int] = ()) -> Markup:
    """Return a table.

    Args:
        headings: of its columns.
        rows: texts of its cells; the first of each is the row's heading.
        numbers: places of columns that are aligned to the right.
    """

    def classed(place: int) -> str:
        return ' class="number"' if place in numbers else ""

    head = "".join(f'<th scope="col"{classed(place)}>{escape(text)}</th>' for place, text in enumerate(headings))
    body = ""
    for row in rows:
        first, *others = row
        cells = "".join(f"<td{classed(place)}>{escape(text)}</td>" for place, text in enumerate(others, start=1))
        body += f'<tr><th scope="row"{classed(0)}>{escape(first)}</th>{cells}</tr>'
    return Markup(f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>')


def code(text: str) -> Markup:
    """Return lines of code, such as of a config."""
    return Markup(f"<pre><code>{escape(text)}</code></pre>")


def figure(svg: str, caption: str = "") -> Markup:
    """Return a figure of `choral.core.figures`, whose words are escaped already; it is white in the dark, too."""
    told = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return Markup(f'<figure class="drawn">{svg}{told}</figure>')


def link(target: str, text: str) -> Markup:
    """Return a link to a file beside the page, or to a section of it (`#id`).

    Raises:
        ValueError: the target is an address or a script.
    """
    if ":" in target or target.startswith("//"):
        raise ValueError(f"{target}: a page links to what lies beside it, only")
    return Markup(f'<p><a href="{escape(target)}">{escape(text)}</a></p>')
