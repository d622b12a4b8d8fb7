"""The page of an analysis as text: everything that needs no browser."""

from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from choral.analysis.page.highlights import find_highlights, join_names
from choral.analysis.page.page_data import build_page_data, encode_array, round_numbers
from choral.analysis.page.report import render_report
from choral.analysis.page.stored_images import make_image_finder
from choral.analysis.page.thumbnails import encode_thumbnail, make_thumbnails, rank_samples
from choral.core.errors import DataError
from choral.data.shards.index import Dataset, Index
from made_analysis import image_finder, made_advice, made_analysis, made_image

TASKS = ("multiclass", "multilabel", "regression")


def unpack(packed_column: dict[str, str]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(packed_column["data"]), dtype="<" + packed_column["type"])


@pytest.mark.parametrize("task", TASKS)
def test_page_data_round_trips(task: str) -> None:
    analysis = made_analysis(task, n=40)
    samples, found = analysis.samples, build_page_data(analysis)["samples"]
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


def test_large_votes_are_left_out() -> None:
    few = made_analysis(n=10)
    many = replace(few, samples=replace(few.samples, votes=np.zeros((10, 200_000), dtype=np.int32)))
    assert len(build_page_data(few)["samples"]["votes"]) == 3
    assert build_page_data(many)["samples"]["votes"] is None


def test_numbers_are_rounded_and_nan_is_null() -> None:
    assert round_numbers({"a": [0.123456789, 1234567.8, 3, "x", None], "b": float("inf")}) == {
        "a": [0.123457, 1234570.0, 3, "x", None],
        "b": None,
    }
    assert encode_array(np.array([1, 2], dtype=">i2")) == {"type": "i2", "data": base64.b64encode(b"\1\0\2\0").decode()}


def test_highlights() -> None:
    analysis = made_analysis()
    texts = {one.section: one for one in find_highlights(analysis)}
    assert {"duplicates", "labels", "health", "confusion", "groups"} <= set(texts)
    assert texts["groups"].tone == "bad" and "type poly" in texts["groups"].text and "cat" not in texts["groups"].text
    assert "Images of test differ from those of the training split: brightness" in " ".join(
        one.text for one in find_highlights(analysis) if one.section == "health"
    )
    advised = find_highlights(replace(analysis, advice=made_advice()))[-1]
    assert (advised.tone, advised.section) == ("bad", "advice") and "rotation" in advised.text
    assert "may" in advised.text and "`choral improve` tests it" in advised.text, "whether it helps is not known yet"
    assert find_highlights(replace(analysis, advice=made_advice(False)))[-1].tone == "good"
    right = replace(analysis.samples, right=np.ones(len(analysis.samples), dtype=np.bool_))
    assert any(
        "All 300 predictions are correct" in one.text for one in find_highlights(replace(analysis, samples=right))
    )
    assert join_names(["a"]) == "a" and join_names(["a", "b", "c"]) == "a, b and c"
    assert join_names(["a", "b", "c", "d", "e", "f"]) == "a, b, c, d and 2 more"


def test_samples_of_every_section_come_first() -> None:
    analysis = made_analysis(n=2000, classes=[f"c{number}" for number in range(30)])
    wanted = rank_samples(analysis)
    assert len(set(wanted)) == len(wanted)
    worst = int(analysis.samples.loss.argmax())
    assert wanted[0] == ("val", analysis.samples.keys[worst])
    first = set(wanted[:1500])
    assert {(one.split, one.key) for one in analysis.label_errors.suspects} <= first
    assert {(place.split, place.key) for group in analysis.duplicates.groups for place in group.samples} <= first
    samples = analysis.samples
    for label in range(30):  # the worst of each class, the worst of each kind of error
        rows = np.flatnonzero(samples.labels == label)
        assert ("val", samples.keys[rows[samples.loss[rows].argmax()]]) in first
    for key in samples.keys:
        assert ("val", key) in wanted


def test_thumbnails_stay_within_the_budget_and_skip_unreadable_images() -> None:
    find = image_finder((400, 300), unreadable="b")
    wanted = [("val", key) for key in "abcdefgh"]
    everything = make_thumbnails(wanted, find, 10**8)
    assert list(everything["val"]) == list("acdefgh")
    sizes = [len(text) for text in everything["val"].values()]
    some = make_thumbnails(wanted, find, 10**8, max_bytes=8 * 20_000)
    assert some == everything
    small = make_thumbnails(wanted, find, 10**8, max_bytes=sum(sizes) // 8)
    assert 0 < len(small["val"]) < 7 and sum(map(len, small["val"].values())) <= sum(sizes) // 8
    assert make_thumbnails(wanted, find, 10**8, max_bytes=0) == {}


def test_thumbnails_are_small_never_enlarged_and_grey_where_the_image_is() -> None:
    def shape(data: bytes, side: int) -> tuple[tuple[int, int], str]:
        image = Image.open(io.BytesIO(base64.b64decode(encode_thumbnail(data, side, 10**8))))
        return image.size, image.mode

    def stored(image: Image.Image) -> bytes:
        file = io.BytesIO()
        image.save(file, "PNG")
        return file.getvalue()

    assert shape(made_image("a", (400, 300)), 192) == ((192, 144), "RGB")
    assert shape(made_image("a", (40, 30)), 192) == ((40, 30), "RGB")
    assert shape(stored(Image.new("L", (300, 300), 90)), 192) == ((192, 192), "L")
    with pytest.raises(DataError):
        encode_thumbnail(b"", 192, 10**8)


@pytest.mark.parametrize("task", TASKS)
def test_a_report_has_every_section(task: str) -> None:
    analysis = replace(made_analysis(task, n=30), skipped=2)
    text = render_report(analysis, image_finder(), 10**8, inputs="0ab1", note="1st use")
    for title in (
        *("Summary", "Worst predictions", "Classes and slices", "Calibration and coverage", "Probable label errors"),
        *("Near-duplicates", "Data health", "Probes", "Advice"),
    ):
        assert re.search(rf"<h2[^>]*>{title}</h2>", text), title
    assert "2 could not be read. 1st use" in text
    found = re.search(r'id="images">(.*?)</script>', text, re.DOTALL)
    assert found is not None and len(json.loads(found[1])["val"]) == 30


def test_images_are_found_by_split_and_key(shards: Path) -> None:
    dataset = Dataset.open(shards)
    key = Index.open(dataset, "val").row(3).key
    read = make_image_finder(dataset)([("val", key), ("val@other", key), ("val", "nobody"), ("nowhere", key)])
    assert Image.open(io.BytesIO(read("val", key))).size == (24, 20)
    assert read("val@other", key) == read("val", key)
    for place in (("val", "nobody"), ("nowhere", key), ("train", key)):
        with pytest.raises(DataError, match="has no sample"):
            read(*place)
