"""The page of an analysis: its sections, the data that its scripts read, and the pictures."""

from __future__ import annotations

from choral import __version__
from choral.analysis.page.frame import Section, embedded, page
from choral.analysis.page.page_data import packed
from choral.analysis.page.pictures import BUDGET, pictures_of, wanted_of
from choral.analysis.page.stored_images import Find
from choral.analysis.results import Analysis

SCRIPTS = (
    *("core.js", "charts.js", "samples.js", "explorer.js", "confusion.js", "groups.js", "curves.js", "findings.js"),
    "main.js",
)
LARGEST = 19_000_000
"""Bytes of a page; pictures get what the rest leaves."""


def report(analysis: Analysis, find: Find, max_pixels: int, inputs: str = "", note: str = "") -> str:
    """Return the page of an analysis, one self-contained HTML file.

    Args:
        analysis: what it shows.
        find: what finds stored images.
        max_pixels: above which no image is decoded.
        inputs: checksum of what it is made of, which `inputs_of_page` finds again.
        note: behind the line of what was analysed, such as how often a test split was looked at.
    """
    data = packed(analysis)
    left = LARGEST - len(embedded(data).encode())
    pictures = pictures_of(wanted_of(analysis), find, max_pixels, max(0, min(BUDGET, left)))
    members = f"{len(analysis.members)} members" if len(analysis.members) > 1 else analysis.members[0]
    subtitle = f"{analysis.n:,} samples of {analysis.split}, answered by {analysis.predictor} of {members}"
    if analysis.skipped:
        subtitle += f"; {analysis.skipped:,} could not be read"
    if note:
        subtitle += f". {note}"
    return page(
        f"{analysis.run}: error analysis",
        sections_of(analysis),
        data,
        subtitle=subtitle,
        scripts=SCRIPTS,
        pictures=pictures,
        inputs=inputs,
        foot=f"choral {__version__}; evaluation {analysis.evaluation[:12]} of data {analysis.dataset[:12]}, {analysis.date}",
    )


def sections_of(analysis: Analysis) -> list[Section]:
    """Return the sections of a page in their order."""
    wrong = int((~analysis.samples.right).sum())
    number = analysis.task == "regression"
    confusion = {
        "multiclass": ("Confusion", "Which classes are taken for which: true in rows, said in columns."),
        "multilabel": (
            "Missed and false labels",
            "How often each label is missed or said falsely; a click shows the samples.",
        ),
        "regression": ("Predictions", "What was said over what is true, of each target."),
    }[analysis.task]
    suspects, twins = len(analysis.label_errors.suspects), analysis.duplicates.found
    return [
        Section("summary", "Summary", "With 95 % intervals, by bootstrap over the samples."),
        Section("worst", "Worst predictions", _worst_lead(analysis), count="" if number else f"{wrong:,}"),
        Section("confusion", *confusion),
        Section("groups", "Classes and slices", _groups_lead(analysis)),
        Section(
            "trust", "Reliability and coverage", "Whether probabilities can be believed, and what is left to err on."
        ),
        Section("labels", "Probable label errors", count=f"{suspects:,}" if suspects else ""),
        Section("twins", "Near-duplicates", count=f"{twins:,}" if twins else ""),
        Section("health", "Data health", f"All {analysis.health.measured:,} images of all splits."),
        Section("probes", "Probes", "What happens to the answers when images are changed, family by family."),
        Section(
            "advice", "Advice", "Which augmentation may mend a weakness that was measured: `choral improve` tries it."
        ),
    ]


def _worst_lead(analysis: Analysis) -> str:
    what = {
        "multiclass": "Loss is the log loss of the true class, in nats.",
        "multilabel": "Loss is the log loss of a label, in nats, the mean over labels.",
        "regression": "Error is the absolute error in standard deviations of each target, their mean.",
    }[analysis.task]
    votes = (
        " Squares are the members' votes, green where right."
        if len(analysis.members) > 1 and analysis.task != "regression"
        else ""
    )
    return f"{what}{votes} A click shows all that is known of a sample."


def _groups_lead(analysis: Analysis) -> str:
    groups = analysis.groups
    if not groups.comparisons:
        return "Nothing is compared: there is one class, or no slice."
    return (
        f"Each compared with all other samples. Differences are marked that stay significant (p < 0.05) after Holm's "
        f"correction for all {groups.comparisons:,} comparisons of this page."
    )
