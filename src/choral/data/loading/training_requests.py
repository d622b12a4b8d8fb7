"""Which samples make each training batch of a rank: a function of config, split and step."""

from __future__ import annotations

from collections.abc import Iterator

from choral.config import Config
from choral.data.augment.mixing import add_partners
from choral.data.loading.host_loader import BatchRequest
from choral.data.loading.rank_place import RankPlace
from choral.data.loading.split import Split
from choral.data.shards.epoch_plan import BalancedPlan, EpochPlan, SubsetPlan, WeightedPlan, rank_slice


def steps_per_epoch(config: Config, split: Split) -> int:
    """Return the optimizer steps in one epoch of a training split; an incomplete last batch is dropped."""
    return _build_epoch_plan(config, split, 0).steps


def training_requests(config: Config, split: Split, place: RankPlace, steps: range) -> Iterator[BatchRequest]:
    """Yield this rank's micro-batches of the given optimizer steps, in order, with partners if the config mixes."""
    micro_steps = config.train.micro_batches
    micro_batch = config.train.batch_size // micro_steps
    rank_part = rank_slice(micro_batch, place.rank, place.world_size)
    plan = _build_epoch_plan(config, split, 0)
    epoch = 0
    for step in steps:
        if step // plan.steps != epoch:
            epoch = step // plan.steps
            plan = _build_epoch_plan(config, split, epoch)
        # A batch lies lane by lane. Each micro-batch takes its part of every lane, so that all mix the lanes equally.
        batch = plan.batch(step % plan.steps).reshape(config.data.lanes, micro_steps, -1)
        for micro in range(micro_steps):
            micro_rows = batch[:, micro].reshape(-1)
            rows, partners = (
                add_partners(micro_rows, rank_part) if config.augment.mixes else (micro_rows[rank_part], None)
            )
            yield BatchRequest(rows, epoch, step, partners)


def _build_epoch_plan(config: Config, split: Split, epoch: int) -> EpochPlan | BalancedPlan | SubsetPlan | WeightedPlan:
    data, batch_size = config.data, config.train.batch_size
    if split.weights is not None and data.resample.by == "sampling":
        return WeightedPlan(config.seed, epoch, split.weights, batch_size)
    plan: EpochPlan | BalancedPlan
    if data.sampling == "balanced":
        plan = BalancedPlan(config.seed, epoch, split.class_rows, batch_size)
    else:
        sizes = split.training_shard_sizes
        plan = EpochPlan(config.seed, epoch, sizes, batch_size, data.lanes, data.shuffle_window)
    return plan if split.selection is None else SubsetPlan(plan, split.selection.rows, len(split))
