"""Renders the package's Jinja2 templates; all text that is passed in is escaped.

A template is named by its path in the package, such as "core/pages/base.html", wherever it lies; so are the style sheets and
scripts that `read_asset` returns.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment, Template


def render_template(template: str | Template, **values: Any) -> str:
    """Return the rendered template; a variable that it uses and that is not passed raises jinja2.UndefinedError."""
    return template_environment().get_template(template).render(values)


@cache
def template_environment() -> Environment:
    """Return the environment of all pages. Jinja2 is imported here, so only where a page is rendered."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("choral", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    environment.filters["script_json"] = lambda content: Markup(script_json(content))  # noqa: S704 (no "<" is left)
    environment.filters["relative_link"] = relative_link
    return environment


def script_json(content: Mapping[str, Any]) -> str:
    """Return JSON for a script element: no text in it can end the element or begin a comment.

    Raises:
        ValueError: it holds NaN or an infinity.
    """
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def relative_link(target: str) -> str:
    """Return the target of a link to a file beside the page, or to a section of it ("#id").

    Raises:
        ValueError: the target has a scheme or a host.
    """
    if ":" in target or target.startswith("//"):
        raise ValueError(f"{target}: a page links only to files beside it")
    return target


@cache
def read_asset(name: str) -> str:
    """Return the text of a style sheet or script, by its path in the package."""
    return resources.files("choral").joinpath(name).read_text(encoding="utf-8")
