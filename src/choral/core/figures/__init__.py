"""Figures of a run directory: drawn by Matplotlib in one style, written as SVG and as PNG.

A module that draws returns a `matplotlib.figure.Figure` from a function decorated with `@figure_style()`; `write_figure`
writes it. Matplotlib is imported when the first figure is drawn, never with a module of choral, and pyplot, which keeps
every figure in a global list, is not used. The style is `choral.mplstyle`, beside this file.
"""

from __future__ import annotations

import base64
import contextlib
import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from choral.core import files
from choral.core.errors import ChoralError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREY, INK, GRID = "#1565a8", "#c2410c", "#66727f", "#1f2933", "#e4e8ec"
_STYLE = Path(__file__).parent / "choral.mplstyle"
_LONGEST_NAME = 28  # characters
_TITLE_LEFT = 0.1  # inches


@contextlib.contextmanager
def figure_style() -> Iterator[None]:
    """Apply choral's style while a figure is built or saved; also a decorator."""
    import matplotlib.style

    with matplotlib.style.context(_STYLE, after_reset=True), warnings.catch_warnings():
        # A browser has glyphs that the bundled font lacks; in the PNG they are boxes.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        yield


def write_figure(path: Path, figure: Figure) -> None:
    """Write a figure as SVG to `path`, and as PNG (200 dots per inch) beside it; each file is replaced atomically.

    Equal data give equal bytes, with the same version of Matplotlib.

    Raises:
        ChoralError: a file cannot be written.
    """
    for target, content in ((path, render_svg(figure)), (path.with_suffix(".png"), render_png(figure))):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            files.write_atomic(target, content)
        except OSError as error:
            raise ChoralError(f"{target}: cannot be written: {error.strerror or error}") from error


def render_svg(figure: Figure) -> bytes:
    """Return a figure as an SVG document, without the date and Matplotlib's version."""
    return _render(figure, "svg", {"Date": None, "Creator": None, "Format": None, "Type": None})


def render_png(figure: Figure) -> bytes:
    """Return a figure as PNG, without Matplotlib's version."""
    return _render(figure, "png", {"Software": None})


def build_data_uri(figure: Figure) -> str:
    """Return a figure as the address of an image (`data:image/svg+xml;base64,...`), for a page of HTML."""
    return f"data:image/svg+xml;base64,{base64.b64encode(render_svg(figure)).decode()}"


def add_title(figure: Figure, title: str, *subtitles: str) -> None:
    """Put a bold title and smaller lines at the top left of a figure; empty lines are left out.

    The axes of a constrained layout stay below. A line wider than the figure gets a smaller font.
    """
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.transforms import ScaledTranslation

    lines = [title, *filter(None, subtitles)]
    width = figure.get_figwidth() - 2 * _TITLE_LEFT
    for number, line in enumerate(map(escape_text, lines)):
        size, weight, color = (8.0, "normal", GREY) if number else (10.5, "bold", INK)
        size *= min(1.0, width / measure_text(line, size, weight))
        below = ScaledTranslation(_TITLE_LEFT, -(16 + 14 * number) / 72, figure.dpi_scale_trans)
        place = figure.transFigure + below
        figure.text(0, 1, line, transform=place, va="baseline", fontsize=size, fontweight=weight, color=color)
    layout = figure.get_layout_engine()
    if isinstance(layout, ConstrainedLayoutEngine):
        layout.set(rect=(0, 0, 1, 1 - title_height(len(lines)) / figure.get_figheight()))


def add_axes(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Add axes to a figure without automatic layout, placed in inches from its top left corner."""
    page_width, page_height = figure.get_size_inches()
    return figure.add_axes(
        (left / page_width, 1 - (top + height) / page_height, width / page_width, height / page_height)
    )


def title_height(lines: int) -> float:
    """Return how many inches at the top of a figure a title of so many lines takes."""
    return (11 + 13 * lines) / 72


def measure_text(text: str, size: float, weight: str = "normal") -> float:
    """Return the width of a line in inches, at a font size in points."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(size=size, weight=weight)
    width: float = text_to_path.get_text_width_height_descent(text or " ", font, ismath=False)[0]
    return width / 72


def escape_text(text: str) -> str:
    """Return a text on one line: characters that cannot be printed, such as a line feed, become escapes (`\\n`)."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


def shorten_name(name: str, longest: int = _LONGEST_NAME) -> str:
    """Return a name in at most `longest` characters, without its middle: members and steps differ at their ends."""
    name = escape_text(name)
    if len(name) <= longest:
        return name
    head = (longest - 1) // 2
    return f"{name[:head]}…{name[-(longest - 1 - head) :]}"


def limit_percent_axis(low: float, high: float) -> tuple[float, float]:
    """Return limits, in per cent, of an axis that shows [low, high] with a margin and nothing below 0 or above 100."""
    margin = 0.06 * max(high - low, 1.0)
    return max(low - margin, 0.0), min(high + margin, 100.0)


def _render(figure: Figure, kind: str, metadata: dict[str, None]) -> bytes:
    content = io.BytesIO()
    with figure_style():
        figure.savefig(content, format=kind, metadata=metadata)
    return content.getvalue()
