"""The model card of a bundle, README.md: what it is, how to use it, what was measured, and what was not. Needs no torch.

After Mitchell et al. 2019, "Model cards for model reporting". All of it is written from bundle.json.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from choral.deploy.bundle.markdown import document, listed, plain, table
from choral.deploy.bundle.usage import render_usage
from choral.ensembles.score_rows import IntervalDict
from choral.scoring.predictor_table import METRIC_HEADINGS, format_metric

_CLASSES = 40
CITED = (
    "Written by choral from what was measured before the export, after Mitchell et al. 2019, "
    "[Model cards for model reporting](https://arxiv.org/abs/1810.03993)."
)
_KINDS = {
    "multiclass": "Classifies images into {count} classes.",
    "multilabel": "Predicts which of {count} labels apply to an image.",
    "regression": "Estimates {count} number(s) from an image.",
}
_FIRST = {"multiclass": ("accuracy",), "multilabel": ("mean_ap", "f1"), "regression": ("rmse", "r2")}
_NOT_STATED = "not stated"


def render_model_card(content: Mapping[str, Any]) -> str:
    """Return the model card, as Markdown, of a bundle.

    Args:
        content: of bundle.json, see `choral.deploy.bundle.read`. Of the keys `scores`, `slices`, `licences` and `provenance`
            each may be missing or empty; the card then states that it is unknown.
    """
    kind, networks = _KINDS[content["task"]].format(count=len(content["classes"])), len(content["members"])
    return document(
        f"# {plain(content['name'])}",
        f"{kind} {'One model' if networks == 1 else f'An ensemble of {networks} models'}.{_headline(content)}",
        CITED,
        "## What it is",
        *_what(content),
        "## How to use it",
        *render_usage(content),
        *_forms(content),
        "## What it scores",
        *scores_part(content),
        *_slices(content),
        "## What it is for, and its limits",
        limits_part(content),
        "## Licences",
        licences_part(content),
        "## Where it comes from",
        provenance_part(content),
        "`bundle.json` holds the complete config of the run and of each network, and `SHA256SUMS` the checksum of every "
        "file; `choral verify` checks both the checksums and the predictions for the images in `golden/`.",
    )


def scores_part(content: Mapping[str, Any]) -> Iterator[str]:
    """Yield the metrics of each evaluated split, those that nothing was chosen on first."""
    scores: Mapping[str, Any] = content.get("scores") or {}
    if not scores:
        yield "Nothing was measured: no split of the data was evaluated before the export."
        return
    for split in sorted(scores, key=lambda name: bool(scores[name].get("chosen_on_it"))):
        own = scores[split]
        note = (
            ", on which weights and calibration were chosen: no evidence of how it will do"
            if own.get("chosen_on_it")
            else ""
        )
        yield f"### {plain(split)}: {own['n']:,} samples{note}"
        rows = [(METRIC_HEADINGS[name], format_metric(name, numbers)) for name, numbers in own["metrics"].items()]
        yield table(("metric", "value [95 % interval]"), rows)
        if not own.get("chosen_on_it") and len(content["classes"]) > 1:
            yield _by_class(own.get("by_class") or {})
    yield "Intervals: bootstrap over the samples; they know nothing of other data, nor of another training."


def limits_part(content: Mapping[str, Any]) -> str:
    """Return the limits of the measured figures."""
    scored = {name: own for name, own in (content.get("scores") or {}).items() if not own.get("chosen_on_it")}
    splits = ", ".join(f"{plain(name)} ({own['n']:,} samples)" for name, own in scored.items())
    points = [
        f"The scores were measured on {splits}: they hold for images from the same source, not for other cameras, sites or "
        "times."
        if scored
        else "Its scores on images that were not used for any choice are unknown: no such split was evaluated.",
        "Near-duplicates of evaluated images in the training split make scores too good; they were not searched for "
        "here (`choral analyze RUN` searches).",
        *_limits_of_task(content),
        *_limits_of_calibration(content),
        "Not measured: what it makes of damaged, edited or hostile images, and whether it does equally well on groups of "
        "images other than the slices above, if there are any.",
    ]
    return "\n".join(f"- {point}" for point in points)


def licences_part(content: Mapping[str, Any]) -> str:
    """Return who may do what with it, as far as it was stated."""
    licences: Mapping[str, str] = content.get("licences") or {}
    data, weights = (plain(licences.get(key) or _NOT_STATED) for key in ("data", "weights"))
    return "\n".join(
        (
            f"- Data that it was trained on: {data}",
            f"- Weights that the training began with: {weights}",
            "- choral, which it was made with: MIT",
            "",
            "Both bind what was made of them. If one is not stated, ask its owner before sharing this.",
        )
    )


def _headline(content: Mapping[str, Any]) -> str:
    """Return the one figure that matters most, of the first split that nothing was chosen on."""
    for split, own in (content.get("scores") or {}).items():
        for metric in _FIRST[content["task"]] if not own.get("chosen_on_it") else ():
            if own["metrics"].get(metric):
                value, name = format_metric(metric, own["metrics"][metric]), METRIC_HEADINGS[metric]
                if name.endswith(" %"):
                    name, value = name.removesuffix(" %"), value.replace(" ", " % ", 1)
                return f" On {own['n']:,} images of {plain(split)}: {name} {value}."
    return ""


def _what(content: Mapping[str, Any]) -> Iterator[str]:
    prediction = content["answer"]
    names = {"multiclass": "Classes", "multilabel": "Labels", "regression": "Numbers"}[content["task"]]
    rows = [
        (names, listed(content["classes"])),
        ("Views of an image", f"{len(prediction['views'])}: {listed(_views(prediction['views']))}"),
        ("Networks are combined by", _rule(prediction)),
        ("Calibrated", _calibration(prediction)),
        ("Decides", _decision(prediction)),
    ]
    if prediction.get("conformal"):
        rows.append(("Sets" if content["task"] != "regression" else "Intervals", _sets(prediction["conformal"])))
    if prediction.get("unsure_below") is not None:
        rows.append(("Unsure", f"where the probability is below {prediction['unsure_below']:.3f}"))
    yield table(("", ""), rows)
    yield table(
        ("network", "architecture", "sees"),
        [(plain(one["name"]), plain(one["architecture"]), _look(one["look"])) for one in content["members"]],
    )


def _views(views: Mapping[str, float]) -> list[str]:
    """Return the names of views, with what each counts where not all count the same."""
    even = len(set(views.values())) == 1
    return [name if even else f"{name} ({weight:.2f})" for name, weight in views.items()]


def _look(input_spec: Mapping[str, Any]) -> str:
    whole = (
        "the whole image"
        if input_spec["crop"] == "resized"
        else f"the central {100 * input_spec['crop_pct']:.3g} % of it"
    )
    return f"{whole} at {input_spec['size']} x {input_spec['size']} pixels"


def _rule(prediction: Mapping[str, Any]) -> str:
    words = {
        "soft": "the mean of their probabilities",
        "hard": "votes",
        "geometric": "the geometric mean of their probabilities",
        "mean": "their mean",
        "median": "their median",
    }
    rule = prediction["rule"]["rule"]
    return words.get(rule, f"{plain(rule)}, fitted on validation data")


def _calibration(prediction: Mapping[str, Any]) -> str:
    method, fitted = prediction["calibration"]["method"], prediction["fitted_on"]
    if method == "none" or not fitted:
        return "no"
    return f"by {plain(method)}, on split {plain(fitted['split'])} ({fitted['samples']:,} samples)"


def _decision(prediction: Mapping[str, Any]) -> str:
    kind = prediction["decision"]["kind"]
    if kind == "costs":
        return "for the least expected cost (the costs are in bundle.json)"
    thresholds = prediction["decision"].get("thresholds") or {}
    if thresholds:
        listed_items = [f"{plain(name)} from {value:.3f}" for name, value in list(thresholds.items())[:20]]
        return "by thresholds: " + ", ".join(listed_items) + (" ..." if len(thresholds) > len(listed_items) else "")
    of_task = {"multilabel": "for every label above one half", "regression": "none: the numbers are the prediction"}
    return of_task.get(prediction["task"], "for the most probable class")


def _sets(conformal: Mapping[str, Any]) -> str:
    return f"conformal, of {100 * conformal['coverage']:g} % coverage ({plain(conformal['score'])})"


def _by_class(by_class: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the table of metrics of each class, label or target."""
    metrics = list(dict.fromkeys(name for own in by_class.values() for name in own))
    metrics = [
        name for name in metrics if name in ("precision", "recall", "f1", "average_precision", "rmse", "mae", "r2")
    ]
    if not metrics:
        return ""
    rows = [
        (plain(name), *(format_metric(metric, own.get(metric)) for metric in metrics))
        for name, own in list(by_class.items())[:_CLASSES]
    ]
    left = len(by_class) - len(rows)
    return table(("", *(METRIC_HEADINGS[metric] for metric in metrics)), rows) + (
        f"\n\nAnd {left} more in bundle.json." if left else ""
    )


def _forms(content: Mapping[str, Any]) -> Iterator[str]:
    """Yield what the files of the whole ensemble are, and what those of lower precision lose."""
    forms: Mapping[str, Mapping[str, Any]] = content.get("forms") or {}
    if not forms:
        return
    yield "The whole ensemble in one file, against the networks in `members/`:"
    rows = []
    for name, facts in forms.items():
        found = facts.get("measured")
        rows.append((f"`{name}`", facts["precision"], f"{facts['megabytes']:.1f}", *_loss(found)))
    yield table(("file", "precision", "MB", "score", "difference", "decided alike", "largest difference"), rows)
    if any(facts["precision"] == "fp32" for facts in forms.values()):
        yield "In full precision (fp32) the export checks that a file predicts as the models do, to 1e-5 in a probability."


def _loss(found: Mapping[str, Any] | None) -> tuple[str, ...]:
    """Return the cells of what a form of lower precision loses."""
    if found is None:
        return ("-",) * 4
    value, low, high = found["difference"]
    metric = found["metric"]
    score = IntervalDict(value=found["value"], low=found["value"], high=found["value"])
    alike = "-" if found["same"] is None else f"{found['same']:,} of {found['n']:,}"
    return (
        f"{METRIC_HEADINGS[metric]} {format_metric(metric, score, bare=True)} on {plain(found['split'])}",
        format_metric(metric, IntervalDict(value=value, low=low, high=high), "+"),
        alike,
        f"{found['largest']:.1e}",
    )


def _slices(content: Mapping[str, Any]) -> Iterator[str]:
    """Yield how metrics differ between parts of a split."""
    slices: Mapping[str, Any] = content.get("slices") or {}
    for column, found in (slices.get("columns") or {}).items():
        yield f"### {plain(slices['split'])} by {plain(column)}"
        own = _metrics_of_slices(content["task"], found["slices"])
        headings = [part for name in own for part in (_named(name), "difference to the rest", "p, corrected")]
        rows = [(plain(one["name"]), f"{one['n']:,}", *_cells(one["metrics"], own)) for one in found["slices"]]
        yield table(("", "samples", *headings), rows)


def _metrics_of_slices(task: str, slices: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the metrics of the slice table; of several targets there is one each, "METRIC TARGET"."""
    there = list(dict.fromkeys(name for one in slices for name in one["metrics"]))
    return [name for name in there if name.partition(" ")[0] in _FIRST[task]][:4]


def _cells(metrics: Mapping[str, Any], names: Sequence[str]) -> Iterator[str]:
    for name in names:
        found, metric = metrics.get(name) or {}, name.partition(" ")[0]
        p = found.get("p_adjusted")
        yield format_metric(metric, found.get("score"))
        yield format_metric(metric, found.get("difference"), "+")
        yield "-" if p is None else f"{p:.2g}"


def _named(name: str) -> str:
    metric, _, target = name.partition(" ")
    return f"{METRIC_HEADINGS[metric]} {plain(target)}".rstrip()


def _limits_of_task(content: Mapping[str, Any]) -> Iterator[str]:
    if content["task"] == "multiclass":
        yield "It predicts one of its classes for every image, also for one that shows none of them."
    if content["task"] == "regression":
        yield "Numbers beyond the range of those that it was trained on are extrapolated."


def _limits_of_calibration(content: Mapping[str, Any]) -> Iterator[str]:
    prediction, scores = content["answer"], content.get("scores") or {}
    if _calibration(prediction) == "no" and content["task"] != "regression":
        yield "Its probabilities are as the networks give them: they were not calibrated, and are no measure of certainty."
    conformal = prediction.get("conformal")
    if not conformal:
        return
    measured = [
        f"{_coverage(own['sets'])} of {plain(split)}"
        for split, own in scores.items()
        if own.get("sets") and not own.get("chosen_on_it")
    ]
    which = "intervals hold the number" if content["task"] == "regression" else "sets hold the truth"
    yield (
        f"Its {which} for {100 * conformal['coverage']:g} % of new images on average, if these are drawn as the validation "
        f"images were, and not for every class or kind of image; measured: {', '.join(measured) or 'not'}."
    )


def _coverage(sets: Mapping[str, Any]) -> str:
    """Return how often sets held the truth, of labels and numbers how often each was covered."""
    covered = sets.get("covered")
    if covered is not None:
        size = sets["size"]["value"]
        return f"{format_metric('recall', covered)} %, with {size:.2f} classes a set,"
    shares = {name: own for name, own in sets["each"].items() if own is not None}
    listed_items = [f"{plain(name)} {format_metric('recall', own)} %" for name, own in list(shares.items())[:20]]
    return ", ".join(listed_items) + (" ..." if len(shares) > len(listed_items) else "")


def provenance_part(content: Mapping[str, Any]) -> str:
    """Return what was trained on what, with what."""
    found: Mapping[str, Any] = content.get("provenance") or {}
    data, software = found.get("data") or {}, found.get("software") or {}
    source = data.get("source") or {}
    splits = ", ".join(f"{plain(name)} {count:,}" for name, count in (data.get("samples") or {}).items())
    rows = [
        ("Run", plain(found.get("run") or "unknown")),
        ("Exported", plain(found.get("created") or "unknown")),
        ("Data", plain(data.get("name") or "unknown") + (f", samples: {splits}" if splits else "")),
        *((key.capitalize(), plain(source[key])) for key in ("citation", "package", "version") if source.get(key)),
        *(("Data fingerprint", f"`{plain(one)}`") for one in dict.fromkeys((data.get("fingerprints") or {}).values())),
        ("Software", ", ".join(f"{plain(name)} {plain(version)}" for name, version in software.items()) or "unknown"),
    ]
    return table(("", ""), rows)
