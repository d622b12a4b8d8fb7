"""The page of an analysis as text: what no browser is needed to see."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from dataclasses import replace
from html import unescape
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from choral.analysis.page import markup
from choral.analysis.page.frame import Section, embedded, inputs_of_page, page
from choral.analysis.page.highlights import highlights_of, listed
from choral.analysis.page.page_data import column, packed, rounded
from choral.analysis.page.pictures import pictures_of, thumbnail, wanted_of
from choral.analysis.page.report import SCRIPTS, report
from choral.analysis.page.stored_images import finder_of
from choral.core.errors import DataError
from choral.data.shards.index import Dataset, Index
from made_analysis import HOSTILE, image_finder, made_advice, made_analysis, made_image

TASKS = ("multiclass", "multilabel", "regression")


def unpack(packed_column: dict[str, str]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(packed_column["data"]), dtype="<" + packed_column["type"])


def test_names_from_data_are_never_markup() -> None:
    sections = [Section("one", HOSTILE[0], HOSTILE[1], markup.table([HOSTILE[0]], [[HOSTILE[1]]]), HOSTILE[0])]
    text = page(HOSTILE[0], sections, {"names": HOSTILE}, subtitle=HOSTILE[1], foot=HOSTILE[1])
    bare = re.sub(r'<script type="application/json" id="data">.*?</script>', "", text, flags=re.DOTALL)
    assert "<script" not in bare and "<img" not in bare
    assert unescape(bare).count(HOSTILE[0]) == 6
    found = re.search(r'id="data">(.*?)</script>', text, re.DOTALL)
    assert found is not None and json.loads(found[1]) == {"names": list(HOSTILE)}


def test_a_script_element_cannot_be_ended_by_what_is_in_it() -> None:
    text = embedded({"a": "</script><!-- \u2028\u2029"})
    assert "<" not in text and "\u2028" not in text and "\u2029" not in text
    assert json.loads(text) == {"a": "</script><!-- \u2028\u2029"}
    with pytest.raises(ValueError, match="Out of range"):
        embedded({"a": float("nan")})


def test_the_policy_allows_the_page_its_own_script_and_style_and_nothing_else() -> None:
    text = page("t", [Section("a", "A")], {}, scripts=SCRIPTS)
    policy = re.search(r'Content-Security-Policy" content="(.*?)"', text)
    assert policy is not None
    rules = dict(rule.split(" ", 1) for rule in policy[1].split("; "))
    assert rules["default-src"] == "'none'" and rules["img-src"] == "data:" and rules["form-action"] == "'none'"
    for tag, rule in (("script", "script-src"), ("style", "style-src")):
        content = re.search(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        assert content is not None
        checksum = base64.b64encode(hashlib.sha256(content[1].encode()).digest()).decode()
        assert rules[rule] == f"'sha256-{checksum}'"
    assert "script-src 'none'" in page("t", [Section("a", "A")])
    assert not re.search(r"\son\w+=|style=|https?://(?!www\.w3\.org)|innerHTML|eval\(", text)


def test_markup_of_words_tables_code_and_links() -> None:
    assert markup.joined(markup.words("a < b"), markup.words("c", "note")) == '<p>a &lt; b</p>\n<p class="note">c</p>'
    assert '<td class="number">1 &amp; 2</td>' in markup.table(["n", "v"], [["a", "1 & 2"]], numbers=[1])
    assert markup.code("a: <b>") == "<pre><code>a: &lt;b&gt;</code></pre>"
    assert markup.figure("<svg></svg>", "<i>").endswith("<figcaption>&lt;i&gt;</figcaption></figure>")
    assert markup.link("../a b/analysis.html", "A") == '<p><a href="../a b/analysis.html">A</a></p>'
    for target in ("https://x.org", "//x.org", "javascript:alert(1)"):
        with pytest.raises(ValueError, match="beside it"):
            markup.link(target, "x")


@pytest.mark.parametrize("task", TASKS)
def test_what_is_packed_is_what_was_found(task: str) -> None:
    analysis = made_analysis(task, n=40)
    samples, found = analysis.samples, packed(analysis)["samples"]
    assert found["keys"] == samples.keys
    np.testing.assert_array_equal(unpack(found["loss"]), samples.loss)
    for values, own in [(samples.labels, found["labels"]), (samples.votes[:, 1], found["votes"][1])]:
        if task == "multilabel":
            offsets, ids = unpack(own["offsets"]), unpack(own["ids"])
            sets = [ids[start:stop].tolist() for start, stop in pairwise(offsets)]
            assert sets == [np.flatnonzero(row).tolist() for row in values]
        else:
            np.testing.assert_array_equal(unpack(own).reshape(values.shape), values)
    if task != "regression":
        sure = unpack(found["vote_confidence"]).reshape(samples.vote_confidence.shape) / 255
        np.testing.assert_allclose(sure, samples.vote_confidence, atol=0.5 / 255 + 1e-6)


def test_votes_that_would_fill_the_page_are_left_out() -> None:
    few = made_analysis(n=10)
    many = replace(few, samples=replace(few.samples, votes=np.zeros((10, 200_000), dtype=np.int32)))
    assert len(packed(few)["samples"]["votes"]) == 3
    assert packed(many)["samples"]["votes"] is None


def test_numbers_are_shortened_and_what_is_not_finite_is_null() -> None:
    assert rounded({"a": [0.123456789, 1234567.8, 3, "x", None], "b": float("inf")}) == {
        "a": [0.123457, 1234570.0, 3, "x", None],
        "b": None,
    }
    assert column(np.array([1, 2], dtype=">i2")) == {"type": "i2", "data": base64.b64encode(b"\1\0\2\0").decode()}


def test_what_to_look_at_first() -> None:
    analysis = made_analysis()
    texts = {one.section: one for one in highlights_of(analysis)}
    assert {"twins", "labels", "health", "confusion", "groups"} <= set(texts)
    assert texts["groups"].tone == "bad" and "type poly" in texts["groups"].text and "cat" not in texts["groups"].text
    assert "test: brightness" in " ".join(
        one.text for one in highlights_of(analysis) if one.section == "health"
    ).replace(" are not like those of the training split", "")
    advised = highlights_of(replace(analysis, advice=made_advice()))[-1]
    assert (advised.tone, advised.section) == ("bad", "advice") and "rotation" in advised.text
    assert "may" in advised.text and "`choral improve` tries it" in advised.text, "whether it helps is not known yet"
    assert highlights_of(replace(analysis, advice=made_advice(False)))[-1].tone == "good"
    right = replace(analysis.samples, right=np.ones(len(analysis.samples), dtype=np.bool_))
    assert any("All 300 samples are right" in one.text for one in highlights_of(replace(analysis, samples=right)))
    assert listed(["a"]) == "a" and listed(["a", "b", "c"]) == "a, b and c"
    assert listed(["a", "b", "c", "d", "e", "f"]) == "a, b, c, d and 2 more"


def test_pictures_of_every_part_come_before_the_rest() -> None:
    analysis = made_analysis(n=2000, classes=[f"c{number}" for number in range(30)])
    wanted = wanted_of(analysis)
    assert len(set(wanted)) == len(wanted)
    worst = int(analysis.samples.loss.argmax())
    assert wanted[0] == ("val", analysis.samples.keys[worst])
    first = set(wanted[:1500])
    assert {(one.split, one.key) for one in analysis.label_errors.suspects} <= first
    assert {(place.split, place.key) for twins in analysis.duplicates.twins for place in twins.places} <= first
    samples = analysis.samples
    for label in range(30):  # the worst of each class, the worst of each kind of error
        rows = np.flatnonzero(samples.labels == label)
        assert ("val", samples.keys[rows[samples.loss[rows].argmax()]]) in first
    for key in samples.keys:
        assert ("val", key) in wanted


def test_pictures_stay_within_the_budget_and_leave_out_what_cannot_be_read() -> None:
    find = image_finder((400, 300), unreadable="b")
    wanted = [("val", key) for key in "abcdefgh"]
    everything = pictures_of(wanted, find, 10**8)
    assert list(everything["val"]) == list("acdefgh")
    sizes = [len(text) for text in everything["val"].values()]
    some = pictures_of(wanted, find, 10**8, budget=8 * 20_000)
    assert some == everything
    small = pictures_of(wanted, find, 10**8, budget=sum(sizes) // 8)
    assert 0 < len(small["val"]) < 7 and sum(map(len, small["val"].values())) <= sum(sizes) // 8
    assert pictures_of(wanted, find, 10**8, budget=0) == {}


def test_thumbnails_are_small_never_enlarged_and_grey_where_the_image_is() -> None:
    def shape(data: bytes, side: int) -> tuple[tuple[int, int], str]:
        image = Image.open(io.BytesIO(base64.b64decode(thumbnail(data, side, 10**8))))
        return image.size, image.mode

    def stored(image: Image.Image) -> bytes:
        file = io.BytesIO()
        image.save(file, "PNG")
        return file.getvalue()

    assert shape(made_image("a", (400, 300)), 192) == ((192, 144), "RGB")
    assert shape(made_image("a", (40, 30)), 192) == ((40, 30), "RGB")
    assert shape(stored(Image.new("L", (300, 300), 90)), 192) == ((192, 192), "L")
    with pytest.raises(DataError):
        thumbnail(b"", 192, 10**8)


@pytest.mark.parametrize("task", TASKS)
def test_a_report_has_every_section(task: str) -> None:
    analysis = replace(made_analysis(task, n=30), skipped=2)
    text = report(analysis, image_finder(), 10**8, inputs="0ab1", note="1st look")
    for title in (
        *("Summary", "Worst predictions", "Classes and slices", "Reliability and coverage", "Probable label errors"),
        *("Near-duplicates", "Data health", "Probes", "Advice"),
    ):
        assert re.search(rf"<h2[^>]*>{title}</h2>", text), title
    assert "2 could not be read. 1st look" in text
    found = re.search(r'id="pictures">(.*?)</script>', text, re.DOTALL)
    assert found is not None and len(json.loads(found[1])["val"]) == 30


def test_a_page_knows_what_it_was_made_of(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    assert inputs_of_page(path) == ""
    path.write_text(page("t", [], inputs="0ab1"), encoding="utf-8")
    assert inputs_of_page(path) == "0ab1"
    path.write_text("<html>", encoding="utf-8")
    assert inputs_of_page(path) == ""


def test_images_are_found_by_split_and_key(shards: Path) -> None:
    dataset = Dataset.open(shards)
    key = Index.open(dataset, "val").row(3).key
    read = finder_of(dataset)([("val", key), ("val@other", key), ("val", "nobody"), ("nowhere", key)])
    assert Image.open(io.BytesIO(read("val", key))).size == (24, 20)
    assert read("val@other", key) == read("val", key)
    for place in (("val", "nobody"), ("nowhere", key), ("train", key)):
        with pytest.raises(DataError, match="has no sample"):
            read(*place)
