"""The end of a boosting round: the trained member predicts all training samples, and those it misclassifies get more weight
in the next round (SAMME: Zhu, Zou, Rosset and Hastie 2009, "Multi-class AdaBoost", Statistics and Its Interface 2).

All of this happens before result.json marks the member as trained, and depends only on its checkpoint and the weights of
its round. So a start after a crash repeats it with the same outcome.
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
    parent_run_dir,
    read_round_weights,
    read_rounds,
    write_round_weights,
    write_rounds,
)
from choral.data.loading.progress import SplitProgress
from choral.data.shards.index import Index
from choral.models.checkpoint_tensors import load_model_tensors
from choral.runs.checkpoints import find_weights
from choral.runs.run_dir import RunDir
from choral.training.trainer import Trainer
from choral.training.weight_averages import temporary_weights

_log = logging.getLogger(__name__)
_ROUNDING = 1e-9  # of sums of weights


@dataclass(frozen=True)
class SammeRound:
    """The outcome of a boosting round."""

    error: float
    """Weighted share of misclassified samples."""
    alpha: float
    """The member's vote, ln((1 - error) / error) + ln(K - 1) for K classes; 0 for a model no better than chance."""
    weights: NDArray[np.float64]
    """(n,) sample weights of the next round, mean 1."""
    stop_reason: str
    """Why there is no next round; "": there is one."""
    accepted: bool
    """Whether the member is better than chance, 1 - error > 1 / K, and so belongs to the ensemble."""


def samme_round(
    weights: NDArray[np.float64], wrong: NDArray[np.bool_], read: NDArray[np.bool_], classes: int, member: str = ""
) -> SammeRound:
    """Return the weighted error and vote of a member, and the sample weights of the next round.

    A member without an error would have an infinite vote. It gets the vote of an error of half the smallest sample
    weight, which is larger than any real error allows, and boosting stops: no sample is left to reweight.

    Args:
        weights: (n,) sample weights of this round, above 0.
        wrong: (n,) which samples the member misclassifies.
        read: (n,) which samples could be read; the others are ignored, and keep their weight.
        classes: number of classes, K.
        member: its name, for the message.
    """
    total = float(weights[read].sum())
    error, chance = float(weights[wrong & read].sum()) / total, 1 - 1 / classes
    if error >= chance - _ROUNDING:
        reason = f"{member} is no better than chance (weighted error {error:.4g}, chance {chance:.4g})"
        return SammeRound(error, 0.0, weights, reason, accepted=False)
    positive_error = error or 0.5 * float(weights[read].min()) / total
    alpha = float(np.log((1 - positive_error) / positive_error) + np.log(classes - 1))
    raised = weights * np.exp(alpha * (wrong & read))
    stop_reason = "" if error else f"{member} classifies every training sample correctly: none is left to reweight"
    return SammeRound(error, alpha, raised / raised.mean(), stop_reason, accepted=True)


def finish_boosting_round(trainer: Trainer) -> bool:
    """Write the sample weights of the next boosting round, and return whether this member is better than chance.

    Returns True without boosting. Every rank must call it, after the last checkpoint is written and before result.json.

    Raises:
        DataError: no training sample could be read.
        ChoralError: a file cannot be written.
        Stopped: all ranks were asked to stop; the next start repeats it.
    """
    config, runtime = trainer.config, trainer.runtime
    if config.data.resample.kind != "boost":
        return True
    wrong, read = _predict_training_split(trainer)
    accepted = torch.ones((), device=runtime.device)
    if runtime.is_main:
        accepted.fill_(_write_round(trainer, wrong, read))
    return bool(runtime.broadcast(accepted).item())


def _predict_training_split(trainer: Trainer) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return, on all ranks, (n,) which training samples are misclassified and which could be read.

    Uses the weights that `evaluate.checkpoint` chooses, and images preprocessed as in evaluation.
    """
    config, runtime, split = trainer.config, trainer.runtime, trainer.train_split
    runtime.barrier()  # until every rank sees the last checkpoint
    tensors = load_model_tensors(*find_weights(trainer.run_dir.checkpoints, config.evaluate.checkpoint))
    found = torch.zeros(2, len(split), device=runtime.device)
    with (
        temporary_weights(trainer.network, tensors),
        trainer.train_inputs.evaluation_batches() as loader,
        SplitProgress("predicting the training samples", len(split) // runtime.world_size, runtime.is_main) as progress,
        torch.inference_mode(),
    ):
        network = trainer.network.eval()
        for batch in loader:
            with runtime.accelerator.autocast():
                logits = network(batch.images)
            wrong_batch = trainer.objective.predictions(logits).argmax(dim=1) != batch.labels
            rows = torch.from_numpy(batch.rows).to(runtime.device)
            found[:, rows] = torch.stack([wrong_batch & batch.valid, batch.valid]).float()
            progress.advance(len(batch.rows))
            if runtime.stop_requested:
                break
    # Ranks have different numbers of batches, so they can agree on stopping only after the last one.
    if runtime.should_stop():
        raise runtime.stop_error("while the training samples were predicted")
    wrong, read = (runtime.sum(found) > 0).cpu().numpy()
    if not read.any():
        raise DataError(
            f"{split.index.dataset.folder}: no sample of split '{split.index.split}' could be read; "
            f"see {trainer.run_dir.bad_log}"
        )
    return wrong, read


def _write_round(trainer: Trainer, wrong: NDArray[np.bool_], read: NDArray[np.bool_]) -> bool:
    """Write the sample weights of the next round, then rounds.json, and return whether the member is accepted."""
    number, member, index = trainer.config.data.resample.number, trainer.run_dir.name, trainer.train_split.index
    folder = parent_run_dir(trainer.run_dir)
    outcome = samme_round(read_round_weights(folder, number, index), wrong, read, trainer.objective.num_outputs, member)
    stored = read_rounds(folder)
    rounds = stored.rounds[:number] if stored is not None else ()
    if outcome.accepted:
        rounds = (*rounds, Round(member, outcome.error, outcome.alpha))
    if not _is_unchanged(folder, rounds, outcome, index):  # rounds after an unchanged one remain valid
        if not outcome.stop_reason:
            write_round_weights(folder, number + 1, index, outcome.weights)
        write_rounds(folder, Rounds(rounds, outcome.stop_reason, trainer.fingerprint))
    if outcome.accepted:
        _log.info("%s: weighted error %.4g on the training split, alpha %.4g", member, outcome.error, outcome.alpha)
    if outcome.stop_reason:
        _log.warning("boosting ends: %s", outcome.stop_reason)
    return outcome.accepted


def _is_unchanged(run_dir: RunDir, rounds: tuple[Round, ...], outcome: SammeRound, index: Index) -> bool:
    """Return whether the stored round is the same, bit for bit: its member was deleted and trained again."""
    stored = read_rounds(run_dir)
    if outcome.stop_reason or stored is None or stored.rounds[: len(rounds)] != rounds:
        return False
    try:
        weights = read_round_weights(run_dir, len(rounds), index)
    except DataError:  # missing or damaged, which may be why the member was trained again
        return False
    return np.array_equal(weights, outcome.weights)
