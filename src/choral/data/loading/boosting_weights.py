"""The files of boosting: sample weights of each round, and the results of finished rounds. Needs no torch.

    RUN/boosting/rounds.json     {"rounds": [{"member": "round1", "error": 0.21, "alpha": 1.32}, ...], "ended": null,
                                  "dataset": "FINGERPRINT"}
    RUN/boosting/round-2.arrow   columns key and weight (float64, mean 1) of the training split, in the order of its
                                 index: the weights that round 2 is trained with

In the first round all weights are 1. RUN is the run directory of the ensemble, whose members are in RUN/members/MEMBER.
The weights of the next round are written before a round is added to rounds.json. Files are replaced atomically: a
reader sees the old or the new one.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from choral.config import ResampleConfig
from choral.core.errors import ChoralError, ConfigError, DataError
from choral.core.files import atomic_file
from choral.data.shards.index import Index
from choral.runs.checkpoints import check_same_data
from choral.runs.run_dir import RunDir, read_json, write_json


@dataclass(frozen=True)
class Round:
    """A member of the chain that takes part in the vote."""

    member: str
    error: float
    """Weighted error rate on the training samples, with the weights of its round."""
    alpha: float
    """Weight of its vote."""


@dataclass(frozen=True)
class Rounds:
    """The finished rounds of a chain."""

    rounds: tuple[Round, ...]
    """In order, without a last one that was no better than chance."""
    ended: str
    """Why no further member is trained; "": the chain has not ended."""
    dataset: str
    """Fingerprint of the data set."""

    @property
    def alphas(self) -> dict[str, float]:
        """The vote weight of each member (SAMME, Zhu et al. 2009)."""
        return {finished.member: finished.alpha for finished in self.rounds}

    def excludes(self, member: str) -> bool:
        """Whether the chain ended with or before this member, so that it is neither trained nor evaluated."""
        return bool(self.ended) and member not in self.alphas


def read_rounds(run_dir: RunDir) -> Rounds | None:
    """Return the finished rounds of a run; None: there are none.

    Args:
        run_dir: of the ensemble, not of a member.
    """
    content = read_json(_boosting_dir(run_dir) / "rounds.json")
    if content is None:
        return None
    rounds = tuple(
        Round(str(entry["member"]), float(entry["error"]), float(entry["alpha"])) for entry in content["rounds"]
    )
    return Rounds(rounds, str(content["ended"] or ""), str(content["dataset"]))


def write_rounds(run_dir: RunDir, rounds: Rounds) -> None:
    """Replace rounds.json. The weights of the next round, if there is one, must be written before."""
    content: dict[str, Any] = {**asdict(rounds), "ended": rounds.ended or None}
    write_json(_boosting_dir(run_dir) / "rounds.json", content)


def write_round_weights(run_dir: RunDir, number: int, index: Index, weights: NDArray[np.float64]) -> None:
    """Write the sample weights of a round.

    Args:
        run_dir: of the ensemble.
        number: of the round, from 0.
        index: of the training split.
        weights: (n,) for its rows, mean 1.

    Raises:
        ChoralError: the disk is full or not writable.
    """
    path = _weights_path(run_dir, number)
    table = pa.table({"key": index.column("key"), "weight": pa.array(weights)})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
    except OSError as error:
        raise ChoralError(f"{path}: cannot be written: {error.strerror or error}") from error


def read_round_weights(run_dir: RunDir, number: int, index: Index) -> NDArray[np.float64]:
    """Return the sample weights of a round.

    Args:
        run_dir: of the ensemble.
        number: of the round, from 0; in round 0 all weights are 1.
        index: of the training split.

    Returns:
        (n,) float64, mean 1.

    Raises:
        DataError: the file is missing, damaged, or belongs to another data set.
    """
    if number == 0:
        return np.ones(len(index))
    path = _weights_path(run_dir, number)
    rounds = read_rounds(run_dir)
    if rounds is not None:
        check_same_data(index.dataset.fingerprint, rounds.dataset, run_dir.path)
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        keys, weights = table["key"].combine_chunks(), table["weight"].to_numpy()
    except (OSError, KeyError, pa.ArrowInvalid) as error:
        raise DataError(f"{path}: cannot be read ({error}); {_rebuild_hint(number)}") from error
    if not keys.equals(index.column("key")):
        raise DataError(f"{path}: its keys differ from those of split '{index.split}'; {_rebuild_hint(number)}")
    return np.array(weights)


def parent_run_dir(member: RunDir) -> RunDir:
    """Return the run directory of the ensemble that a member belongs to.

    Raises:
        ConfigError: `member` is not the directory of a member.
    """
    path = member.path.absolute()
    if path.parent.name != "members":
        raise ConfigError(
            f"data.resample.kind: boost applies only to members of an ensemble, in RUN/members/MEMBER, not to "
            f"{member.path}; set ensemble.boosting instead"
        )
    return RunDir(path.parent.parent)


def reason_not_trained(resample: ResampleConfig, member: RunDir) -> str:
    """Return why a member of a chain must not be trained; "": it may be.

    Args:
        resample: `data.resample` of the member; kinds other than boost may always be trained.
        member: its run directory.

    Raises:
        ChoralError: the previous round is not finished.
    """
    if resample.kind != "boost":
        return ""
    run_dir = parent_run_dir(member)
    rounds = read_rounds(run_dir)
    if rounds is not None and rounds.excludes(member.name):
        return f"the chain has ended: {rounds.ended}"
    done = len(rounds.rounds) if rounds is not None else 0
    if done < resample.number:
        raise ChoralError(
            f"{member.path}: round {resample.number + 1} of boosting needs the weights that round {resample.number} "
            f"writes to {_boosting_dir(run_dir)}, but {done} rounds are finished: train the members in order, as "
            "`choral ensemble` does"
        )
    return ""


def _boosting_dir(run_dir: RunDir) -> Path:
    return run_dir.path / "boosting"


def _weights_path(run_dir: RunDir, number: int) -> Path:
    return _boosting_dir(run_dir) / f"round-{number + 1}.arrow"


def _rebuild_hint(number: int) -> str:
    return f"delete result.json of the member of round {number} and train it again, which writes this file"
