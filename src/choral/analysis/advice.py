"""Advice: which augmentation would mend a weakness that was measured, as a config with its reasons.

    RUN/advice.yaml   an `augment:` section on top of the run's own config, each line with its reason and figures
    RUN/advice.json   the same for programs, and what was not advised, with the reason

How it comes about is in `choral.analysis.advice_from_probes`; this is what it is, and how it is written and read.
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
from choral.ensembles.score_rows import Numbers
from choral.inference.ledger import Ledger
from choral.runs.run_dir import RunDir, read_json, write_atomic, write_json

FORMAT = "choral-advice-1"
ADVICE_JSON, ADVICE_YAML = "advice.json", "advice.yaml"


@dataclass(frozen=True)
class Line:
    """One family of changes that training should make.

    Attributes:
        family: such as rotation or darker: what validation images do and training images did not.
        key: of the augment section that does it, such as rotate.
        value: for that key, as YAML has it.
        settings: all keys that it takes, `key` among them, with their values.
        strength, unit: up to which validation images vary, as the curves have it.
        drop: how much the metric falls when validation images are changed so, paired; p_drop after Holm's correction.
        evidence: that validation images show it: "undone", answers get better where it is undone; "alike", changed images
            cannot be told from others of their class.
        gain: how many more answers are right (of several labels an image, the mean share of them) when that change is undone
            in each image, without a look at its label, paired; p_gain after Holm's correction. None: nothing undoes it.
        plausibility: of "undone" the share of the errors on validation that undoing mends; of "alike" how alike they are, see
            `choral.analysis.resemblance`. 0 to 1.
        score: drop times plausibility, by which lines are ordered.
        reason: one sentence with the figures.
    """

    family: str
    key: str
    value: Any
    settings: Mapping[str, Any]
    strength: float
    unit: str
    drop: Numbers
    p_drop: float
    evidence: Literal["undone", "alike"]
    gain: Numbers | None
    p_gain: float | None
    plausibility: float
    score: float
    reason: str


@dataclass(frozen=True)
class Rejected:
    """A family that was probed and is not advised, with the reason."""

    family: str
    reason: str


@dataclass(frozen=True)
class Advice:
    """What training should change, and why.

    Attributes:
        run, split, predictor: that were probed.
        metric: of drops, a share of 1.
        n: samples that were probed.
        lines: best first; none: nothing is advised.
        rejected: all other families, in the order of the probes.
        comparisons: families that were tested; p values are adjusted for so many.
        note: what was found, in one or two sentences.
        dataset, evaluation: fingerprints of the data and of the weights, as the ledger has them.
    """

    run: str
    split: str
    predictor: str
    metric: str
    n: int
    lines: tuple[Line, ...]
    rejected: tuple[Rejected, ...]
    comparisons: int
    note: str
    dataset: str
    evaluation: str

    @property
    def settings(self) -> dict[str, Any]:
        """All keys of the augment section that are advised, with their values."""
        return {key: value for line in self.lines for key, value in line.settings.items()}

    def to_json(self) -> dict[str, Any]:
        """Return what `from_json` reads."""
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Advice:
        """Read what `to_json` returned; KeyError, TypeError or ValueError where it is something else."""
        values = dict(content)
        if values.pop("format") != FORMAT:
            raise ValueError(f"expected {FORMAT}")
        values["lines"] = tuple(Line(**line) for line in values["lines"])
        values["rejected"] = tuple(Rejected(**one) for one in values["rejected"])
        return cls(**values)

    def to_yaml(self) -> str:
        """Return a config file for the run's folder: the run's config with the advised augment section on top."""
        words = [f"Advice from {self.n} samples of split {self.split} of run {self.run}. {self.note}"]
        lines = [f"# {part}" for text in words for part in _wrapped(text)]
        lines += ["# Train it: choral train THIS-FILE", f"run: {self.run}-advised", "step: +augment"]
        lines += ["base: config.yaml", "augment:" if self.lines else "augment: {}"]
        done: set[str] = set()
        for line in self.lines:
            lines += [f"  # {part}" for part in _wrapped(line.reason)]
            own = {key: value for key, value in line.settings.items() if key not in done}
            lines += [f"  {key}: {json.dumps(value)}" for key, value in own.items()]
            done |= set(own)
        if self.rejected:
            lines += ["# Not advised:"]
            lines += [f"#   {part}" for one in self.rejected for part in _wrapped(f"{one.family}: {one.reason}")]
        return "\n".join(lines) + "\n"


def write_advice(folder: RunDir, advice: Advice) -> Path:
    """Write both files of a run's advice, and return the path of the config."""
    path = folder.path / ADVICE_YAML
    write_atomic(path, advice.to_yaml())
    write_json(folder.path / ADVICE_JSON, advice.to_json())
    return path


def advice_of(folder: RunDir, config: Config, split: str) -> Advice | None:
    """Return the advice that was made of a split of a run.

    Args:
        folder, config: of the run.
        split: that was probed.

    Returns:
        None: there is none, or it is of another split, or of other weights or data than the split's ledger.

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
        raise DataError(f"{path}: damaged ({error}); delete it, and run `choral improve` again") from error
    ledger = folder.predictions / f"{split}.parquet"
    if advice.split != split or not ledger.is_file():
        return None
    meta = Ledger.open(ledger).meta
    return advice if (advice.dataset, advice.evaluation) == (meta.dataset, meta.evaluation) else None


def _wrapped(text: str, width: int = 110) -> list[str]:
    return textwrap.wrap(text, width, break_long_words=False)
