"""Self-contained pages as text: everything that needs no browser."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
import sys
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from jinja2 import UndefinedError

from choral.core.pages.page import Page, Section, read_page_inputs, render_page
from choral.core.pages.templates import render_template, script_json, template_environment
from made_analysis import HOSTILE

TABLE_PAGE = """{% extends "core/pages/page.html" %}
{% from "core/pages/macros.html" import table %}
{% block section_body %}{{ table([section.title], [[section.lead]]) }}{% endblock %}"""


def macros() -> Any:
    return template_environment().get_template("core/pages/macros.html").module


def test_names_from_data_are_never_markup() -> None:
    page = Page(
        HOSTILE[0],
        [Section("one", HOSTILE[0], HOSTILE[1], HOSTILE[0])],
        subtitle=HOSTILE[1],
        foot=HOSTILE[1],
        data={"names": HOSTILE},
        template=template_environment().from_string(TABLE_PAGE),
    )
    text = render_page(page)
    bare = re.sub(r'<script type="application/json" id="data">.*?</script>', "", text, flags=re.DOTALL)
    assert "<script" not in bare and "<img" not in bare
    assert unescape(bare).count(HOSTILE[0]) == 6
    found = re.search(r'id="data">(.*?)</script>', text, re.DOTALL)
    assert found is not None and json.loads(found[1]) == {"names": list(HOSTILE)}


def test_json_cannot_end_its_script_element() -> None:
    text = script_json({"a": "</script><!-- \u2028\u2029"})
    assert "<" not in text and "\u2028" not in text and "\u2029" not in text
    assert json.loads(text) == {"a": "</script><!-- \u2028\u2029"}
    with pytest.raises(ValueError, match="Out of range"):
        script_json({"a": float("nan")})


def test_the_policy_allows_only_the_pages_own_script_and_style() -> None:
    text = render_page(Page("t", [Section("a", "A")], data={}, scripts=("analysis/page/charts.js",)))
    policy = re.search(r'Content-Security-Policy" content="(.*?)"', text)
    assert policy is not None
    rules = dict(rule.split(" ", 1) for rule in policy[1].split("; "))
    assert rules["default-src"] == "'none'" and rules["img-src"] == "data:" and rules["form-action"] == "'none'"
    for tag, rule in (("script", "script-src"), ("style", "style-src")):
        content = re.search(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        assert content is not None
        checksum = base64.b64encode(hashlib.sha256(content[1].encode()).digest()).decode()
        assert rules[rule] == f"'sha256-{checksum}'"
    assert "script-src 'none'" in render_page(Page("t", [Section("a", "A")]))
    assert not re.search(r"\son\w+=|style=|https?://(?!www\.w3\.org)|innerHTML|eval\(", text)


def test_macros_escape_their_text() -> None:
    assert '<td class="number">1 &amp; 2</td>' in macros().table(["n", "v"], [["a", "1 & 2"]], numbers=[1])
    assert macros().code("a: <b>") == "<pre><code>a: &lt;b&gt;</code></pre>"
    figure = macros().figure("data:image/png;base64,AA==", '"<b>', "<i>")
    assert 'alt="&#34;&lt;b&gt;"' in figure and figure.endswith("<figcaption>&lt;i&gt;</figcaption></figure>")
    assert macros().link("../a b/analysis.html", "A") == '<p><a href="../a b/analysis.html">A</a></p>'
    for target in ("https://x.org", "//x.org", "javascript:alert(1)"):
        with pytest.raises(ValueError, match="only to files beside it"):
            macros().link(target, "x")


def test_a_missing_variable_is_an_error() -> None:
    with pytest.raises(UndefinedError, match="title"):
        render_template("core/pages/base.html")


def test_the_inputs_of_a_page_are_read_back(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    assert read_page_inputs(path) == ""
    path.write_text(render_page(Page("t", [], inputs="0ab1")), encoding="utf-8")
    assert read_page_inputs(path) == "0ab1"
    path.write_text("<html>", encoding="utf-8")
    assert read_page_inputs(path) == ""


@pytest.mark.parametrize("module", ["cli.workflow.summary", "analysis.page.report", "core.pages.page"])
def test_jinja2_is_imported_only_where_a_page_is_rendered(module: str) -> None:
    code = f"import sys, choral.{module}; sys.exit('jinja2' in sys.modules and 'torch' not in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
