"""The end of a round of boosting: the trained member is asked about all training samples, and what it gets wrong weighs more
in the next round (SAMME: Zhu, Zou, Rosset and Hastie 2009, "Multi-class AdaBoost", Statistics and Its Interface 2).

All of it happens before result.json says that the member is trained, and depends on its checkpoint and its own table alone:
a start after a sudden end does it again, with the same outcome.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from choral.core.errors import DataError
from choral.data.loading.boosting_weights import (
    Round,
    Rounds,
    keep_rounds,
    keep_weights,
    rounds_of,
    run_folder_of,
    weights_of_round,
)
from choral.data.loading.input_pipeline import evaluation_batches
from choral.data.loading.progress import SplitProgress
from choral.data.shards.index import Index
from choral.models.checkpoint_tensors import load_model_tensors
from choral.runs.checkpoints import weights_of
from choral.runs.run_dir import RunDir
from choral.training.trainer import Trainer
from choral.training.weight_averages import holding

_log = logging.getLogger(__name__)
_ROUNDING = 1e-9  # of sums of weights


@dataclass(frozen=True)
class SammeRound:
    """What a round comes to."""

    error: float
    """Share of the samples that are wrong, by weight."""
    alpha: float
    """ln((1 - error) / error) + ln(K - 1) for K classes: 0 for a network that is as good as chance."""
    weights: NDArray[np.float64]
    """(n,) of the next round, mean 1."""
    end: str
    """Why there is no next round; "": there is one."""
    counts: bool
    """Whether the member is better than chance, which is 1 - error = 1 / K."""


def samme_round(
    weights: NDArray[np.float64], wrong: NDArray[np.bool_], read: NDArray[np.bool_], classes: int, member: str = ""
) -> SammeRound:
    """Return the error and vote of a member, and what samples weigh in the next round.

    A member without an error would have an infinite vote. It gets the one that it would have if half of the lightest sample
    were wrong, which is more than any error allows, and ends the chain: nothing is left that a next one could learn from.

    Args:
        weights: (n,) of this round, above 0.
        wrong: (n,) which samples the member takes for another class.
        read: (n,) which could be read; the others count nothing, and keep their weight.
        classes: that there are, K.
        member: its name, for the message.
    """
    total = float(weights[read].sum())
    error, chance = float(weights[wrong & read].sum()) / total, 1 - 1 / classes
    if error >= chance - _ROUNDING:
        reason = f"{member} is no better than chance (weighted error {error:.4g}, chance {chance:.4g})"
        return SammeRound(error, 0.0, weights, reason, counts=False)
    least = 0.5 * float(weights[read].min()) / total
    counted = error or least
    alpha = float(np.log((1 - counted) / counted) + np.log(classes - 1))
    raised = weights * np.exp(alpha * (wrong & read))
    end = "" if error else f"{member} gets every training sample right: nothing is left to weigh more"
    return SammeRound(error, alpha, raised / raised.mean(), end, counts=True)


def end_round(trainer: Trainer) -> bool:
    """With boosting, write what the next member is trained with, and return whether this one counts; else return True.

    To be called by every rank once the last checkpoint is there, and before result.json is.

    Raises:
        DataError: no training sample could be read.
        ChoralError: something cannot be written.
        Stopped: all ranks were asked to stop; a further start does it again.
    """
    config, run = trainer.config, trainer.run
    if config.data.resample.kind != "boost":
        return True
    wrong, read = _answers(trainer)
    counts = torch.ones((), device=run.device)
    if run.is_main:
        counts.fill_(_keep(trainer, wrong, read))
    return bool(run.broadcast(counts).item())


def _answers(trainer: Trainer) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return, on all ranks, (n,) which training samples are wrong and which could be read; each is asked about once.

    Asked are the weights that an evaluation would ask, about images as evaluation sees them.
    """
    config, run, split = trainer.config, trainer.run, trainer.train_split
    run.barrier()  # until the last checkpoint is there for all
    tensors = load_model_tensors(*weights_of(trainer.folder.checkpoints, config.evaluate.checkpoint))
    found = torch.zeros(2, len(split), device=run.device)
    bad_log = trainer.folder.path / "bad_samples.jsonl"
    mean, std = trainer.normalization.mean, trainer.normalization.std
    with (
        holding(trainer.network, tensors),
        evaluation_batches(config, split, trainer.place, mean, std, bad_log) as loader,
        SplitProgress("weighing the training samples", len(split) // run.world_size, run.is_main) as progress,
        torch.inference_mode(),
    ):
        network = trainer.network.eval()
        for batch in loader:
            with run.accelerator.autocast():
                logits = network(batch.images)
            missed = trainer.objective.predictions(logits).argmax(dim=1) != batch.labels
            rows = torch.from_numpy(batch.rows).to(run.device)
            found[:, rows] = torch.stack([missed & batch.valid, batch.valid]).float()
            progress.advance(len(batch.rows))
            if run.told_to_stop:
                break
    # Ranks hold different numbers of batches: only here, after the last of them, can they agree.
    if run.should_stop():
        raise run.stopped("while the training samples were weighed")
    wrong, read = (run.sum(found) > 0).cpu().numpy()
    if not read.any():
        raise DataError(
            f"{split.index.dataset.folder}: no sample of split '{split.index.split}' could be read; see {bad_log}"
        )
    return wrong, read


def _keep(trainer: Trainer, wrong: NDArray[np.bool_], read: NDArray[np.bool_]) -> bool:
    """Write the table of the next round, then rounds.json, and return whether the member counts."""
    number, member, index = trainer.config.data.resample.number, trainer.folder.name, trainer.train_split.index
    folder = run_folder_of(trainer.folder)
    found = samme_round(weights_of_round(folder, number, index), wrong, read, trainer.objective.outputs, member)
    known = rounds_of(folder)
    rounds = known.rounds[:number] if known is not None else ()
    if found.counts:
        rounds = (*rounds, Round(member, found.error, found.alpha))
    if not _known_already(
        folder, rounds, found, index
    ):  # else the rounds after it, if there are any, stand as they are
        if not found.end:
            keep_weights(folder, number + 1, index, found.weights)
        keep_rounds(folder, Rounds(rounds, found.end, trainer.fingerprint))
    if found.counts:
        _log.info("%s: weighted error %.4g on the training split, alpha %.4g", member, found.error, found.alpha)
    if found.end:
        _log.warning("boosting ends: %s", found.end)
    return found.counts


def _known_already(folder: RunDir, rounds: tuple[Round, ...], found: SammeRound, index: Index) -> bool:
    """Whether a round that goes on came to the same before, to the last bit: its member was deleted and trained again."""
    known = rounds_of(folder)
    if found.end or known is None or known.rounds[: len(rounds)] != rounds:
        return False
    try:
        table = weights_of_round(folder, len(rounds), index)
    except DataError:  # missing or damaged: that is why it was trained again
        return False
    return np.array_equal(table, found.weights)
