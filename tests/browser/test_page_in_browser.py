"""The page of an analysis in a real browser: filters, dialogs, keyboard, widths, hostile names, speed."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from opened import Opened

from choral.analysis.page.report import render_report
from choral.core.pages.page import Page, Section, render_page
from choral.core.pages.templates import template_environment
from made_analysis import HOSTILE, image_finder, made_advice, made_analysis, made_curves, made_image

Show = Callable[..., Opened]
WIDTHS = (390, 1440)
TABLE_PAGE = """{% extends "core/pages/page.html" %}
{% from "core/pages/macros.html" import table %}
{% block section_body %}<p>It is *better*.</p>{{ table(["step", "accuracy"], [["baseline", "87.2"]], [1]) }}{% endblock %}"""


def html_of(analysis: Any) -> str:
    return render_report(analysis, image_finder(), 10**8)


def complete(task: str = "multiclass", **options: Any) -> Any:
    return replace(made_analysis(task, **options), advice=made_advice(), probes=made_curves())


def test_filters_show_what_they_say(show: Show) -> None:
    analysis = complete()
    samples = analysis.samples
    opened = show(html_of(analysis))
    by_loss = np.argsort(-samples.loss, kind="stable")
    assert opened.found() == "300 samples"
    assert opened.keys() == [samples.keys[row] for row in by_loss[:24]]

    def shown(mask: np.ndarray) -> None:
        rows = by_loss[mask[by_loss]]
        assert opened.found() == f"{len(rows)} sample{'s' if len(rows) > 1 else ''} of 300"
        assert opened.keys() == [samples.keys[row] for row in rows[:24]]

    opened.choose("True class", "dog")
    shown(samples.labels == 1)
    opened.choose("Predicted class", "horse")
    shown((samples.labels == 1) & (samples.predicted == 2))
    opened.tab.get_by_role("button", name="Clear filters").click()
    assert opened.found() == "300 samples"
    opened.choose("Slice by", "type")
    opened.choose("Slice", "poly")
    shown(samples.slices["type"].codes == 1)
    opened.choose("Result", "wrong")
    shown((samples.slices["type"].codes == 1) & ~samples.right)
    opened.tab.get_by_role("button", name="Clear filters").click()
    wrong = (samples.votes != samples.labels[:, None]).sum(axis=1)
    for option, mask in [
        ("wrong, and so is every member", ~samples.right & (wrong == 3)),
        ("wrong, though a member is correct", ~samples.right & (wrong < 3)),
        ("correct, though a member is wrong", samples.right & (wrong > 0)),
    ]:
        opened.choose("Result", option)
        shown(mask)
    opened.choose("Result", "any")
    opened.tab.get_by_placeholder("part of a key").fill("PHOTO 0001")
    shown(np.array(["photo 0001" in key for key in samples.keys]))
    opened.tab.get_by_placeholder("part of a key").fill("nowhere")
    assert "No sample matches" in opened.found()


def test_orders_and_pages(show: Show) -> None:
    analysis = complete()
    samples = analysis.samples
    opened = show(html_of(analysis))
    opened.tab.get_by_role("button", name="Most confident errors").click()
    wrong = np.flatnonzero(~samples.right)
    order = wrong[np.argsort(-samples.confidence[wrong], kind="stable")]
    assert opened.keys() == [samples.keys[row] for row in order[:24]]
    opened.tab.locator("#worst").get_by_role("button", name="Next").click()
    assert opened.keys() == [samples.keys[row] for row in order[24:48]]
    opened.tab.get_by_role("button", name="Members disagree").click()
    torn = (samples.votes != samples.votes[:, :1]).any(axis=1)
    assert opened.found() == f"{torn.sum()} samples of 300"
    opened.tab.get_by_role("button", name="Least confident").click()
    assert opened.keys()[0] == samples.keys[int(samples.confidence.argmin())]


def test_other_sections_lead_to_the_samples_they_are_about(show: Show) -> None:
    analysis = complete()
    samples = analysis.samples
    opened = show(html_of(analysis))
    opened.tab.get_by_role("button", name=re.compile("of cat predicted as dog")).click()
    count = int(((samples.labels == 0) & (samples.predicted == 1)).sum())
    assert opened.found().startswith(f"{count} sample")
    opened.tab.locator("#groups").get_by_role("button", name="mono").click()
    assert opened.found() == f"{(samples.slices['type'].codes == 0).sum()} samples of 300"
    names = "#groups .groups:first-of-type tbody td:first-child button"
    heads = opened.tab.locator("#groups .groups").first.get_by_role("button", name="Samples")
    heads.click()
    counts = [int((samples.labels == number).sum()) for number in range(3)]
    assert opened.tab.locator(names).all_inner_texts()[0] == analysis.classes[int(np.argmin(counts))]
    heads.click()
    assert opened.tab.locator(names).all_inner_texts()[0] == analysis.classes[int(np.argmax(counts))]
    opened.tab.locator("#duplicates").get_by_role("button", name="Across splits").click()
    assert opened.tab.locator("#duplicates .pair").count() == 2
    opened.tab.get_by_text("Leakage: 1 of val").click()
    assert opened.tab.evaluate("location.hash") == "#duplicates"


def test_the_sheet_of_a_sample_and_the_keyboard(show: Show) -> None:
    analysis = complete()
    samples = analysis.samples
    opened = show(html_of(analysis))
    tab, order = opened.tab, np.argsort(-samples.loss, kind="stable")
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.textContent") == "Skip to the content"
    tab.locator("#worst .card").first.focus()
    tab.keyboard.press("Enter")
    sheet = tab.locator("dialog")
    text = sheet.inner_text()
    row = order[0]
    assert samples.keys[row] in text and "1 of 300" in text
    for member, vote in zip(analysis.members, samples.votes[row], strict=True):
        assert f"{member}: {analysis.classes[vote]}" in text
    assert ("mono", "poly")[samples.slices["type"].codes[row]] in text
    tab.keyboard.press("ArrowRight")
    assert samples.keys[order[1]] in sheet.inner_text()
    tab.keyboard.press("ArrowLeft")
    tab.keyboard.press("ArrowLeft")
    assert samples.keys[row] in sheet.inner_text()
    tab.keyboard.press("Escape")
    assert not sheet.is_visible()
    assert tab.evaluate("document.activeElement.className") == "card"


@pytest.mark.parametrize("task", ["multiclass", "multilabel", "regression"])
def test_names_are_text_and_nothing_is_wider_than_the_window(show: Show, task: str) -> None:
    long = "a very long name of a class that no table was ever made for " * 2
    keys = [f"{name} {number}" for number, name in enumerate([*HOSTILE, long, "x" * 120] * 12)]
    analysis = complete(task, n=len(keys), classes=(*HOSTILE, long), keys=keys, members=HOSTILE, values=HOSTILE)
    html = html_of(analysis)
    for width in WIDTHS:
        opened = show(html, width=width, scheme="dark" if width == 390 else "light")
        wide, window = opened.overflow()
        assert wide <= window == width
        text = opened.tab.inner_text("main")
        assert HOSTILE[0] in text and HOSTILE[1] in text
        opened.tab.locator("#worst .card").nth(3).click()
        assert opened.tab.locator("dialog").is_visible()
        assert opened.overflow()[0] <= width
        assert opened.tab.evaluate("document.querySelectorAll('script').length") == 3


def test_numbers_that_are_all_the_same_and_a_band_that_begins_late_are_drawn(show: Show) -> None:
    analysis = complete("regression", n=7)
    five = {name: np.full_like(getattr(analysis.samples, name), 5) for name in ("labels", "predicted", "votes")}
    low, high = analysis.coverage.low.copy(), analysis.coverage.high.copy()
    low[:3] = high[:3] = np.nan  # of one sample there is no band
    coverage = replace(analysis.coverage, low=low, high=high)
    opened = show(html_of(replace(analysis, samples=replace(analysis.samples, **five), coverage=coverage)))
    assert opened.tab.locator("#confusion svg .dots").first.get_attribute("d").count("M") == 7
    band = opened.tab.locator("#trust svg .band").get_attribute("d")
    assert band.count(",") == 2 * (len(low) - 3) and "NaN" not in band


def test_contents_on_a_phone_open_lead_and_close(show: Show) -> None:
    opened = show(html_of(complete(n=40)), width=390, height=800)
    link = opened.tab.get_by_role("link", name="Data health", exact=True)
    assert not link.is_visible()
    opened.tab.get_by_text("Contents").click()
    link.click()
    assert not link.is_visible()
    for _ in range(100):  # it scrolls smoothly
        if near := opened.tab.evaluate("Math.abs(document.getElementById('health').getBoundingClientRect().top) < 100"):
            break
        opened.tab.wait_for_timeout(50)
    assert near


def test_requests_are_refused_even_if_a_script_made_them(show: Show) -> None:
    opened = show(html_of(complete(n=10)))
    request = "fetch('https://example.org/').then(() => 'sent', () => 'refused')"
    assert opened.tab.evaluate(request) == "refused"
    assert opened.complaints and all("Content Security Policy" in line for line in opened.complaints)
    opened.complaints.clear()


def test_a_page_of_50000_samples_is_small_and_opens_at_once(show: Show, browser: Any) -> None:
    data = made_image("any", (160, 120))
    classes = [f"class number {number}" for number in range(1000)]
    members = [f"member {number}" for number in range(10)]
    analysis = complete(n=50_000, classes=classes, members=members, values=[f"place {number}" for number in range(20)])
    html = render_report(analysis, lambda places: lambda split, key: data, 10**8)
    assert len(html.encode()) < 20_000_000
    opened = show("<!doctype html><title>warm</title>")
    session = opened.tab.context.new_cdp_session(opened.tab)
    session.send("Performance.setTimeDomain", {"timeDomain": "threadTicks"})
    session.send("Performance.enable")

    def seconds() -> float:
        metrics = session.send("Performance.getMetrics")["metrics"]
        return float(next(one["value"] for one in metrics if one["name"] == "TaskDuration"))

    opened.path.write_text(html, encoding="utf-8")
    times = []
    while not times or (min(times) >= 2 and len(times) < 4):  # other work on the machine makes it longer, never shorter
        before = seconds()
        opened.tab.goto(opened.path.as_uri())
        opened.tab.wait_for_selector("html[data-ready]")
        times.append(seconds() - before)
    assert min(times) < 2, "seconds of the page's own thread"
    del opened.requests[1:]
    assert opened.found() == "50,000 samples"
    opened.tab.get_by_placeholder("part of a key").fill("photo 04321")
    assert opened.found() == "1 sample of 50,000"


def test_a_page_without_scripts(show: Show) -> None:
    template = template_environment().from_string(TABLE_PAGE)
    page = Page(
        "What each step brought", [Section("steps", "Steps")], subtitle="elpv", foot="choral", template=template
    )
    html = render_page(page)
    for width in WIDTHS:
        opened = show(html, width=width)
        assert "baseline" in opened.tab.inner_text("#steps") and opened.overflow()[0] <= width
        opened.tab.get_by_role("link", name="Skip").focus()
