"""Advice: the augmentation that would fix a measured weakness, as a config with reasons.

    RUN/advice.yaml   an `augment:` section on top of the run's config, each line with its reason and figures
    RUN/advice.json   the same for programs, and the families that are not advised, with reasons

`choral.analysis.advice_from_probes` derives it; this module defines, writes and reads it.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from choral.config import Config
from choral.core.errors import DataError
from choral.ensembles.score_rows import IntervalDict
from choral.inference.ledger import Ledger
from choral.runs.run_dir import RunDir, read_json, write_atomic, write_json

FORMAT = "choral-advice-1"
ADVICE_JSON, ADVICE_YAML = "advice.json", "advice.yaml"


@dataclass(frozen=True)
class AdviceLine:
    """One family of augmentation that is advised.

    Attributes:
        family: such as rotation or darker: a variation of the validation images that training did not cover.
        key: of the augment section that applies it, such as rotate.
        value: of that key, as YAML has it.
        settings: all keys that it sets, `key` among them, with their values.
        strength, unit: up to which validation images vary, in the unit of the curve.
        drop: of the metric on perturbed images, paired; p_drop after Holm's correction.
        evidence: that it matters for the data: "undone": undoing it corrects predictions; "alike": perturbed images can
            hardly be told from others of their class.
        gain: share of predictions (multilabel: of labels, averaged over images) corrected by undoing it, without using the
            labels, paired; p_gain after Holm's correction. None: nothing undoes it.
        plausibility: 0 to 1. Of "undone" the share of the validation errors that undoing corrects; of "alike" the
            resemblance, see `choral.analysis.resemblance`.
        score: drop times plausibility, by which lines are ordered.
        reason: one or two sentences with the figures.
    """

    family: str
    key: str
    value: Any
    settings: Mapping[str, Any]
    strength: float
    unit: str
    drop: IntervalDict
    p_drop: float
    evidence: Literal["undone", "alike"]
    gain: IntervalDict | None
    p_gain: float | None
    plausibility: float
    score: float
    reason: str


@dataclass(frozen=True)
class RejectedFamily:
    """A family that was probed but is not advised, with the reason."""

    family: str
    reason: str


@dataclass(frozen=True)
class Advice:
    """The augmentation that a run should be trained with next, and why.

    Attributes:
        run, split, predictor: that were probed.
        metric: of drops, a share of 1.
        n: samples that were probed.
        lines: best first; empty where nothing is advised.
        rejected: all other families, in the order of the probes.
        comparisons: families that were tested by undoing; p values are adjusted for them.
        note: the result in one or two sentences.
        dataset, evaluation: fingerprints of the data and of the weights, as in the ledger.
    """

    run: str
    split: str
    predictor: str
    metric: str
    n: int
    lines: tuple[AdviceLine, ...]
    rejected: tuple[RejectedFamily, ...]
    comparisons: int
    note: str
    dataset: str
    evaluation: str

    @property
    def settings(self) -> dict[str, Any]:
        """All advised keys of the augment section, with their values."""
        return {key: value for line in self.lines for key, value in line.settings.items()}

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON that `from_json` reads."""
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Advice:
        """Return the advice that `to_json` wrote; KeyError, TypeError or ValueError for any other content."""
        values = dict(content)
        if values.pop("format") != FORMAT:
            raise ValueError(f"expected {FORMAT}")
        values["lines"] = tuple(AdviceLine(**line) for line in values["lines"])
        values["rejected"] = tuple(RejectedFamily(**one) for one in values["rejected"])
        return cls(**values)

    def to_yaml(self) -> str:
        """Return a config file for the run directory: the run's config with the advised augment section on top."""
        summary = f"Advice from {self.n} samples of split {self.split} of run {self.run}. {self.note}"
        lines = [f"# {part}" for part in _wrap(summary)]
        lines += ["# Train it: choral train THIS-FILE", f"run: {self.run}-advised", "step: +augment"]
        lines += ["base: config.yaml", "augment:" if self.lines else "augment: {}"]
        written: set[str] = set()
        for line in self.lines:
            lines += [f"  # {part}" for part in _wrap(line.reason)]
            new = {key: value for key, value in line.settings.items() if key not in written}
            lines += [f"  {key}: {json.dumps(value)}" for key, value in new.items()]
            written |= set(new)
        if self.rejected:
            lines += ["# Not advised:"]
            lines += [f"#   {part}" for one in self.rejected for part in _wrap(f"{one.family}: {one.reason}")]
        return "\n".join(lines) + "\n"


def write_advice(folder: RunDir, advice: Advice) -> Path:
    """Write both files of a run's advice and return the path of the config."""
    path = folder.path / ADVICE_YAML
    write_atomic(path, advice.to_yaml())
    write_json(folder.path / ADVICE_JSON, advice.to_json())
    return path


def read_advice(folder: RunDir, config: Config, split: str) -> Advice | None:
    """Return the stored advice for a split of a run.

    None where there is none, or it is for another split, or for other weights or data than the split's ledger.

    Args:
        folder, config: of the run.
        split: that was probed.

    Raises:
        DataError: the file is damaged.
    """
    path = folder.path / ADVICE_JSON
    content = read_json(path)
    if content is None:
        return None
    try:
        advice = Advice.from_json(content)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: damaged ({error}); delete it and run `choral improve` again") from error
    ledger = folder.predictions / f"{split}.parquet"
    if advice.split != split or not ledger.is_file():
        return None
    meta = Ledger.open(ledger).meta
    return advice if (advice.dataset, advice.evaluation) == (meta.dataset, meta.evaluation) else None


def _wrap(text: str, width: int = 110) -> list[str]:
    return textwrap.wrap(text, width, break_long_words=False)
