"""Which ledgers an evaluation is to leave, and which of them are there already. Needs no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from choral.checkpoints import check_same_data
from choral.config import Config
from choral.errors import DataError
from choral.inputs.targets import Targets
from choral.model.outputs import Outputs
from choral.predict.ledger import Ledger, LedgerMeta
from choral.predict.views import expand
from choral.predict.voices import Voice, voices_of
from choral.runfolder import RunFolder
from choral.shards.index import Dataset, Index


@dataclass(frozen=True)
class Evaluation:
    """What is asked of whom."""

    voices: list[Voice]
    unfinished: list[str]
    """Members that are not trained, and not asked."""
    views: tuple[str, ...]
    ledgers: dict[str, tuple[Path, LedgerMeta]]
    """Split to its ledger's path and what the ledger will hold."""

    def missing(self) -> list[str]:
        """Return the splits whose ledger is not there, or holds something else: other weights, views or data."""
        return [split for split, (path, meta) in self.ledgers.items() if not _holds(path, meta)]


def plan_evaluation(config: Config, folder: RunFolder, dataset: Dataset) -> Evaluation:
    """Return what evaluating a run as its config says comes to.

    Raises:
        ConfigError: an unknown view.
        ChoralError: no member has been trained.
        DataError: the data hold other classes, labels or targets than the members were trained on.
    """
    views = expand(config.evaluate.views)
    voices, unfinished = voices_of(folder, config)
    outputs = voices[0].outputs
    for split in config.evaluate.splits:
        targets = Targets.open(config, Index.open(dataset, split))
        if not outputs.agree(Outputs(targets.task, targets.names)):
            raise DataError(
                f"{dataset.folder}: holds other classes than the members were trained on; evaluate on data of the same "
                "classes"
            )
    for voice in voices:
        if Path(voice.config.data.shards).absolute() == dataset.folder:  # other data are meant to be other data
            check_same_data(dataset.fingerprint, voice.dataset, voice.checkpoint.parent.parent)
    several = len(views) > 1
    kept = views if config.evaluate.keep_views or not several else tuple(view for view in views if view == "identity")
    ledgers = {}
    for split in config.evaluate.splits:
        meta = LedgerMeta(
            classes=outputs.names,
            members=tuple(voice.name for voice in voices),
            views=(*kept, "tta") if several else kept,
            split=split,
            dataset=dataset.fingerprint,
            evaluation=_fingerprint(voices, config.train.precision),
            tta_views=views if several else (),
            task=outputs.task,
        )
        ledgers[split] = (folder.predictions / f"{split}.parquet", meta)
    return Evaluation(voices, unfinished, views, ledgers)


def _fingerprint(voices: Sequence[Voice], precision: str) -> str:
    """Return a hash of everything that decides the probabilities of a view, apart from the data."""
    parts = [*(f"{voice.name} {voice.weights_hash} {voice.inputs}" for voice in voices), precision]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _holds(path: Path, meta: LedgerMeta) -> bool:
    try:
        return path.is_file() and Ledger.open(path).meta == meta
    except DataError:
        return False
