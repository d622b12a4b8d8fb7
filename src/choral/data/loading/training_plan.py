"""Which samples make each training batch of a rank: a function of seed, split and step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from choral.config import Config
from choral.data.augment.mixing import add_partners
from choral.data.loading.host_loader import BatchRequest
from choral.data.loading.rank_place import RankPlace
from choral.data.loading.split import Split
from choral.data.shards.epoch_plan import BalancedPlan, EpochPlan, SubsetPlan, WeightedPlan, rank_slice


@dataclass(frozen=True)
class TrainingPlan:
    """The order of the training samples of a split, epoch by epoch.

    Attributes:
        split: the training split.
        seed: of the order.
        batch_size: samples per optimizer step, over all ranks.
        lanes, shuffle_window: see `EpochPlan`.
        is_balanced: whether classes are sampled equally often.
        is_weighted: whether samples are drawn by the weights of the split, instead of weighting their losses.
    """

    split: Split
    seed: int
    batch_size: int
    lanes: int
    shuffle_window: int
    is_balanced: bool
    is_weighted: bool

    @classmethod
    def from_config(cls, config: Config, split: Split) -> TrainingPlan:
        """Return the plan of a training config."""
        data = config.data
        return cls(
            split,
            config.seed,
            config.train.batch_size,
            data.lanes,
            data.shuffle_window,
            is_balanced=data.sampling == "balanced",
            is_weighted=split.weights is not None and data.resample.by == "sampling",
        )

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in one epoch; an incomplete last batch is dropped."""
        return self.epoch(0).steps

    def epoch(self, epoch: int) -> EpochPlan | BalancedPlan | SubsetPlan | WeightedPlan:
        """Return the plan of one epoch."""
        split = self.split
        if self.is_weighted:
            assert split.weights is not None
            return WeightedPlan(self.seed, epoch, split.weights, self.batch_size)
        plan: EpochPlan | BalancedPlan
        if self.is_balanced:
            plan = BalancedPlan(self.seed, epoch, split.class_rows, self.batch_size)
        else:
            sizes = split.training_shard_sizes
            plan = EpochPlan(self.seed, epoch, sizes, self.batch_size, self.lanes, self.shuffle_window)
        return plan if split.selection is None else SubsetPlan(plan, split.selection.rows, len(split))

    def requests(self, place: RankPlace, steps: range, micro_batches: int, mixes: bool) -> Iterator[BatchRequest]:
        """Yield this rank's micro-batches of the given optimizer steps, in order.

        Args:
            place: the rank.
            steps: optimizer steps of the whole training.
            micro_batches: per optimizer step.
            mixes: whether each request names mixing partners.
        """
        rank_part = rank_slice(self.batch_size // micro_batches, place.rank, place.world_size)
        plan, epoch = self.epoch(0), 0
        for step in steps:
            if step // plan.steps != epoch:
                epoch = step // plan.steps
                plan = self.epoch(epoch)
            # A batch lies lane by lane. Each micro-batch takes its part of every lane, so that all mix the lanes equally.
            batch = plan.batch(step % plan.steps).reshape(self.lanes, micro_batches, -1)
            for micro in range(micro_batches):
                micro_rows = batch[:, micro].reshape(-1)
                rows, partners = add_partners(micro_rows, rank_part) if mixes else (micro_rows[rank_part], None)
                yield BatchRequest(rows, epoch, step, partners)
