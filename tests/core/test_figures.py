"""Figures: equal data give equal bytes, names are literal text, and Matplotlib is imported with the first figure."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from choral.core.errors import ChoralError
from choral.core.figures import (
    add_title,
    build_data_uri,
    escape_text,
    figure_style,
    limit_percent_axis,
    render_png,
    render_svg,
    shorten_name,
    write_figure,
)
from drawn_figures import misplaced_texts, svg_texts

HOSTILE = "$\\frac{1}{2}$ <b>&amp;\n\x07 $x_1"
LITERAL = "$\\frac{1}{2}$ <b>&amp;\\n\\x07 $x_1"


@figure_style()
def draw(title: str = "a title", name: str = "one") -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3), layout="constrained")
    add_title(figure, title, "", "a line below")
    axes = figure.subplots()
    axes.errorbar([1, 2, 3], [3, 1, 2], yerr=0.5, marker="o")
    axes.set_yticks([1, 2, 3], [escape_text(name), "two", "three"])
    return figure


def run_python(code: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    here = Path(__file__).parent
    paths = os.pathsep.join([str(here), str(here.parent), str(here.parent / "support"), *sys.path])
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": paths, **environment},
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )


def test_svg_and_png_stand_side_by_side(tmp_path: Path) -> None:
    figure = draw()
    write_figure(tmp_path / "made" / "here" / "one.svg", figure)
    folder = tmp_path / "made" / "here"
    assert sorted(path.name for path in folder.iterdir()) == ["one.png", "one.svg"]
    assert (folder / "one.png").read_bytes().startswith(b"\x89PNG")
    assert svg_texts((folder / "one.svg").read_bytes())[-2:] == ["a title", "a line below"]
    assert misplaced_texts(render_svg(figure)) == []


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "folder").write_text("a file")
    with pytest.raises(ChoralError, match=r"one\.svg: cannot be written: "):
        write_figure(tmp_path / "folder" / "one.svg", draw())


def test_equal_data_give_equal_bytes_in_every_process(tmp_path: Path) -> None:
    contents = [(render_svg(figure), render_png(figure)) for figure in (draw(), draw())]
    assert contents[0] == contents[1]
    code = (
        "import hashlib, test_figures as t; from choral.core.figures import render_png, render_svg; figure = t.draw()\n"
        "print(*(hashlib.sha256(render(figure)).hexdigest() for render in (render_svg, render_png)))"
    )
    expected = [hashlib.sha256(content).hexdigest() for content in contents[0]]
    (tmp_path / "matplotlibrc").write_text("lines.linewidth: 7\nfont.size: 20\nsvg.fonttype: path\n")
    for seed in ("1", "2"):
        done = run_python(code, cwd=tmp_path, PYTHONHASHSEED=seed)
        assert done.stdout.split() == expected, "a user's matplotlibrc has no effect, either"


def test_names_are_literal_text() -> None:
    texts = svg_texts(render_svg(draw(HOSTILE, HOSTILE)))
    assert texts.count(LITERAL) == 2
    assert escape_text("日本語 \ud800") == "日本語 \\ud800"
    assert "日本語" in svg_texts(render_svg(draw("日本語"))), "the bundled font has no such glyphs; a browser has"
    assert shorten_name("efficientnet_lite2-seed0001 at 260", 20) == "efficient…001 at 260"
    assert shorten_name("a\nb") == "a\\nb"


def test_a_title_that_is_too_long_gets_a_smaller_font() -> None:
    assert misplaced_texts(render_svg(draw("many words " * 20))) == []


def test_a_document_names_no_date_no_version_and_no_address() -> None:
    text = render_svg(draw()).decode()
    assert "matplotlib" not in text.lower().replace("matplotlib.axis", "") and "rdf" not in text
    assert b"Software" not in render_png(draw())
    assert build_data_uri(draw()).startswith("data:image/svg+xml;base64,PD94bWw")


def test_the_settings_of_a_user_are_restored() -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    render_png(draw())
    assert dict(matplotlib.rcParams) == before


def test_percent_axes_end_at_0_and_100() -> None:
    assert limit_percent_axis(0.5, 99.9) == (0.0, 100.0)
    assert limit_percent_axis(70, 80) == pytest.approx((69.4, 80.6))
    low, high = limit_percent_axis(100, 100)
    assert low < high == 100


def test_drawing_does_not_import_pyplot() -> None:
    code = "import sys, test_figures as t; t.render_png(t.draw()); sys.exit('matplotlib.pyplot' in sys.modules)"
    assert run_python(code).returncode == 0


@pytest.mark.parametrize(
    "module", ["cli", "cli.workflow", "training.loop", "scoring.scoreboard.figure", "core.figures"]
)
def test_matplotlib_is_not_imported_with_a_module(module: str) -> None:
    code = f"import sys, choral.{module}; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
