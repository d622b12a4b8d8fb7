"""What each training sample weighs in each round of boosting, and how the rounds ended. Needs no torch.

    RUN/boosting/rounds.json     {"rounds": [{"member": "round1", "error": 0.21, "alpha": 1.32}, ...], "ended": null,
                                  "dataset": "FINGERPRINT"}
    RUN/boosting/round-2.arrow   columns key and weight (float64, mean 1) of the training split, in the order of its
                                 index: what round 2 is trained with

In the first round all samples weigh 1. RUN is the folder of the ensemble, whose members lie in RUN/members/MEMBER. A round
stands in rounds.json once its table is there; whoever reads a file finds the old or the new one.
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
from choral.core.files import written_aside
from choral.data.shards.index import Index
from choral.runs.checkpoints import check_same_data
from choral.runs.run_dir import RunDir, read_json, write_json


@dataclass(frozen=True)
class Round:
    """A member of the chain that counts."""

    member: str
    error: float
    """Of the training samples that it gets wrong, the share by their weights in its round."""
    alpha: float
    """How much its vote counts."""


@dataclass(frozen=True)
class Rounds:
    """How far a chain has come."""

    rounds: tuple[Round, ...]
    """In order, without a last one that was no better than chance."""
    ended: str
    """Why no further member is trained; "": nothing has ended it."""
    dataset: str
    """Fingerprint of the data."""

    @property
    def alphas(self) -> dict[str, float]:
        """How much the vote of each member counts (Zhu et al. 2009)."""
        return {one.member: one.alpha for one in self.rounds}

    def leaves_out(self, member: str) -> bool:
        """Whether the end of the chain came with or before this member: it is neither trained nor asked."""
        return bool(self.ended) and member not in self.alphas


def rounds_of(folder: RunDir) -> Rounds | None:
    """Return how far the boosting of a run has come; None: no round is complete, or the run has none.

    Args:
        folder: of the run, not of a member.
    """
    content = read_json(_place(folder) / "rounds.json")
    if content is None:
        return None
    rounds = tuple(Round(str(one["member"]), float(one["error"]), float(one["alpha"])) for one in content["rounds"])
    return Rounds(rounds, str(content["ended"] or ""), str(content["dataset"]))


def keep_rounds(folder: RunDir, rounds: Rounds) -> None:
    """Replace rounds.json; the table of the next round, if there is one, has to be there before."""
    content: dict[str, Any] = {**asdict(rounds), "ended": rounds.ended or None}
    write_json(_place(folder) / "rounds.json", content)


def keep_weights(folder: RunDir, number: int, index: Index, weights: NDArray[np.float64]) -> None:
    """Write the table of a round.

    Args:
        folder: of the run.
        number: of the round, counted from 0.
        index: of the training split.
        weights: (n,) of its rows, mean 1.

    Raises:
        ChoralError: the disk is full or not writable.
    """
    path = _table(folder, number)
    table = pa.table({"key": index.column("key"), "weight": pa.array(weights)})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_aside(path) as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
    except OSError as error:
        raise ChoralError(f"{path}: cannot be written: {error.strerror or error}") from error


def weights_of_round(folder: RunDir, number: int, index: Index) -> NDArray[np.float64]:
    """Return what each row of the training split weighs in a round.

    Args:
        folder: of the run.
        number: of the round, counted from 0: there, all weigh 1.
        index: of the training split.

    Returns:
        (n,) float64, mean 1.

    Raises:
        DataError: the table is missing or damaged, or was made for other data.
    """
    if number == 0:
        return np.ones(len(index))
    path = _table(folder, number)
    rounds = rounds_of(folder)
    if rounds is not None:
        check_same_data(index.dataset.fingerprint, rounds.dataset, folder.path)
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        keys, weights = table["key"].combine_chunks(), table["weight"].to_numpy()
    except (OSError, KeyError, pa.ArrowInvalid) as error:
        raise DataError(f"{path}: cannot be read ({error}); {_again(number)}") from error
    if not keys.equals(index.column("key")):
        raise DataError(f"{path}: holds other keys than split '{index.split}'; {_again(number)}")
    return np.array(weights)


def run_folder_of(member: RunDir) -> RunDir:
    """Return the folder of the run that a member's folder belongs to.

    Raises:
        ConfigError: it is not the folder of a member.
    """
    path = member.path.absolute()
    if path.parent.name != "members":
        raise ConfigError(
            f"data.resample.kind: boost belongs to the members of an ensemble, which lie in RUN/members/MEMBER, not to "
            f"{member.path}; set ensemble.boosting instead"
        )
    return RunDir(path.parent.parent)


def why_not_trained(resample: ResampleConfig, member: RunDir) -> str:
    """Return why a member of a chain is not to be trained any more; "": it is.

    Args:
        resample: of the member's config; those of other kinds may always be trained.
        member: its folder.

    Raises:
        ChoralError: it is not its turn: the round before it is not complete.
    """
    if resample.kind != "boost":
        return ""
    folder = run_folder_of(member)
    rounds = rounds_of(folder)
    if rounds is not None and rounds.leaves_out(member.name):
        return f"the chain has ended: {rounds.ended}"
    done = len(rounds.rounds) if rounds is not None else 0
    if done < resample.number:
        raise ChoralError(
            f"{member.path}: round {resample.number + 1} of boosting needs the weights that round {resample.number} leaves "
            f"in {_place(folder)}, but {done} rounds are complete: train the members in order, as `choral ensemble` does"
        )
    return ""


def _place(folder: RunDir) -> Path:
    return folder.path / "boosting"


def _table(folder: RunDir, number: int) -> Path:
    return _place(folder) / f"round-{number + 1}.arrow"


def _again(number: int) -> str:
    return f"delete result.json of the member of round {number}, and train it again: that writes the table anew"
