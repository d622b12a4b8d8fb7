"""The page of an analysis: its sections, the data that its scripts read, and the thumbnails."""

from __future__ import annotations

from choral import __version__
from choral.analysis.page.page_data import build_page_data
from choral.analysis.page.stored_images import ImageFinder
from choral.analysis.page.thumbnails import MAX_BYTES, make_thumbnails, rank_samples
from choral.analysis.results import Analysis
from choral.core.pages.page import Page, Section, render_page
from choral.core.pages.templates import script_json

STYLES = ("analysis/page/analysis.css",)
SCRIPTS = tuple(
    f"analysis/page/{name}.js"
    for name in ("charts", "samples", "explorer", "confusion", "groups", "curves", "findings", "main")
)
MAX_PAGE_BYTES = 19_000_000
"""Of a page; thumbnails get what the data leave."""


def render_report(analysis: Analysis, find: ImageFinder, max_pixels: int, inputs: str = "", note: str = "") -> str:
    """Return the page of an analysis, one self-contained HTML file.

    Args:
        analysis: what it shows.
        find: finds stored images.
        max_pixels: images with more pixels are not decoded.
        inputs: checksum of everything the page is made of, for `choral.core.pages.page.read_page_inputs`.
        note: a sentence at the end of the subtitle, such as how often a test split was used.
    """
    data = build_page_data(analysis)
    budget = min(MAX_BYTES, MAX_PAGE_BYTES - len(script_json(data).encode()))
    page = Page(
        title=f"{analysis.run}: error analysis",
        sections=build_sections(analysis),
        subtitle=_subtitle(analysis, note),
        foot=(
            f"choral {__version__}; evaluation {analysis.evaluation[:12]} of data {analysis.dataset[:12]}, "
            f"{analysis.date}"
        ),
        data=data,
        images=make_thumbnails(rank_samples(analysis), find, max_pixels, max(0, budget)),
        inputs=inputs,
        styles=STYLES,
        scripts=SCRIPTS,
    )
    return render_page(page)


def build_sections(analysis: Analysis) -> list[Section]:
    """Return the sections of the page in their order; scripts fill them."""
    errors = int((~analysis.samples.right).sum())
    suspects, duplicates = len(analysis.label_errors.suspects), analysis.duplicates.found
    confusion = {
        "multiclass": ("Confusion matrix", "Rows: true class. Columns: predicted class."),
        "multilabel": (
            "Missed and false labels",
            "How often each label is missed (false negative) or predicted wrongly (false positive). Click a count to see "
            "the samples.",
        ),
        "regression": ("Predictions", "Predicted against true value, for each target."),
    }[analysis.task]
    return [
        Section("summary", "Summary", "With 95 % intervals, by bootstrap over the samples."),
        Section("worst", "Worst predictions", _worst_lead(analysis), _count(errors, analysis.task != "regression")),
        Section("confusion", *confusion),
        Section("groups", "Classes and slices", _groups_lead(analysis)),
        Section(
            "trust",
            "Calibration and coverage",
            "Whether confidence matches accuracy, and how errors fall when the least confident predictions are left out.",
        ),
        Section("labels", "Probable label errors", count=_count(suspects, suspects > 0)),
        Section("duplicates", "Near-duplicates", count=_count(duplicates, duplicates > 0)),
        Section("health", "Data health", f"All {analysis.health.measured:,} images of all splits."),
        Section("probes", "Probes", "How much the metric drops when images are perturbed, family by family."),
        Section(
            "advice",
            "Advice",
            "Augmentation that may fix a measured weakness; choral improve trains with it and tests whether it helps.",
        ),
    ]


def _subtitle(analysis: Analysis, note: str) -> str:
    members = f"{len(analysis.members)} members" if len(analysis.members) > 1 else analysis.members[0]
    text = f"{analysis.n:,} samples of split {analysis.split}, predicted by {analysis.predictor} of {members}"
    if analysis.skipped:
        text += f"; {analysis.skipped:,} could not be read"
    return f"{text}. {note}" if note else text


def _count(number: int, is_shown: bool) -> str:
    return f"{number:,}" if is_shown else ""


def _worst_lead(analysis: Analysis) -> str:
    loss = {
        "multiclass": "Loss is the log loss of the true class, in nats.",
        "multilabel": "Loss is the log loss in nats, averaged over labels.",
        "regression": "Error is the absolute error in standard deviations of the target, averaged over targets.",
    }[analysis.task]
    votes = ""
    if len(analysis.members) > 1 and analysis.task != "regression":
        votes = " Squares show the members' predictions: green is correct, red is wrong."
    return f"{loss}{votes} Click a sample for details."


def _groups_lead(analysis: Analysis) -> str:
    comparisons = analysis.groups.comparisons
    if not comparisons:
        return "Nothing to compare: there is one class, or no slice."
    return (
        "Each group is compared with all other samples. Marked differences are significant (p < 0.05) after Holm's "
        f"correction for all {comparisons:,} comparisons on this page."
    )
