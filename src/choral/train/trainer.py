"""What the steps of one run share: the network, its optimizer and schedule, the data; and the tensors of one step."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from choral.config import Config
from choral.errors import ChoralError
from choral.inputs.device import Batch, DeviceLoader
from choral.inputs.streams import (
    RankPlace,
    Split,
    evaluation_batches,
    open_dataset,
    open_split,
    steps_per_epoch,
    training_batches,
)
from choral.model.build import Normalization, build_model, normalization_of
from choral.model.strategy import apply_phase, phases_of, train_mode
from choral.model.syncbn import synchronize_batchnorm
from choral.model.weights import resolve_weights
from choral.runfolder import RunFolder
from choral.runtime import Runtime
from choral.shards.counter import key_of
from choral.train.objective import Objective
from choral.train.optim import Schedule, build_optimizer
from choral.train.state import TrainState
from choral.train.tracking import Tracker

_DROPOUT = 7  # purpose of the random numbers that layers draw


class Trainer:
    """What the steps of one run share: the network, its optimizer and schedule, the data.

    Public for tests, which take single steps; everybody else calls `train`.
    """

    def __init__(self, config: Config, folder: RunFolder, run: Runtime) -> None:
        self.config, self.folder, self.run = config, folder, run
        dataset = open_dataset(config.data)
        self.place = RankPlace(run.rank, run.world_size, run.device, run.local_world_size)
        self.fingerprint = dataset.fingerprint
        self.train_split: Split = open_split(config, dataset, config.data.train_split, self.place)
        self.val_split: Split = open_split(config, dataset, config.data.val_split, self.place)
        self.objective = Objective.of(config, self.train_split, run.device)
        self.epoch_steps = steps_per_epoch(config, self.train_split)
        self.schedule = Schedule.of(config.train, self.epoch_steps)
        self.last_rate = 0.0

        model = build_model(resolve_weights(config.model), self.objective.outputs, config.data.image_size, config.seed)
        apply_phase(model, phases_of(model, config.finetune, self.epoch_steps, self.schedule.total_steps)[0])
        self.normalization: Normalization = normalization_of(model)
        self._synchronized = config.model.sync_batchnorm and run.world_size > 1
        if self._synchronized:
            model = synchronize_batchnorm(model, run.device.type)
        optimizer = build_optimizer(model, config.train)
        self.model, self.optimizer = run.accelerator.prepare(model, optimizer)

    @property
    def network(self) -> nn.Module:
        """The network itself, outside DistributedDataParallel."""
        network = self.run.accelerator.unwrap_model(self.model)
        assert isinstance(network, nn.Module)
        return network

    def batches_from(self, step: int) -> DeviceLoader:
        """Return the loader of this rank's micro-batches from an optimizer step to the last one."""
        return training_batches(
            self.config,
            self.train_split,
            self.place,
            self.normalization.mean,
            self.normalization.std,
            range(step, self.schedule.total_steps),
            self.folder.path / "bad_samples.jsonl",
        )

    def train_step(self, batches: Iterator[Batch], step: int) -> Tensor:
        """Take one optimizer step over `accumulate_steps` micro-batches.

        Returns:
            this rank's share of the mean loss over the global batch, 0-d on the device; the sum over ranks is the mean.

        Raises:
            ChoralError: the gradient is not finite, on every rank alike, since gradients are summed over ranks; no
                update was made.
        """
        config, accelerator = self.config.train, self.run.accelerator
        train_mode(self.model)
        self.last_rate = self.schedule.apply(self.optimizer, step)
        micro_batch = config.batch_size // config.accumulate_steps
        mean_loss = torch.zeros((), device=self.run.device)
        for micro in range(config.accumulate_steps):
            batch = next(batches)
            # Layers that draw random numbers do so from a state that is computed, so that none has to be saved.
            torch.manual_seed(int(key_of(self.config.seed, _DROPOUT, step, micro, self.run.rank) >> 1))
            with accelerator.accumulate(self.model):
                with accelerator.autocast():
                    logits = self.model(batch.images)
                # Ranks may hold slices of different sizes: dividing by the size of the whole micro-batch, times the
                # world size that DDP's mean divides by, gives the gradient of the mean over all samples.
                loss = self.objective.losses(logits, batch).sum() / micro_batch
                accelerator.backward(loss * self.run.world_size)
                mean_loss += loss.detach() / config.accumulate_steps
                if accelerator.sync_gradients:
                    norm = accelerator.clip_grad_norm_(self.model.parameters(), config.max_grad_norm or float("inf"))
                    if config.precision != "fp16" and not bool(torch.isfinite(norm)):  # fp16's scaler skips the step
                        raise ChoralError(
                            f"step {step}: the gradient is not finite (loss on rank {self.run.rank}: {mean_loss.item():g}); "
                            "no update was made. Lower train.lr, or lengthen train.warmup_epochs"
                        )
                self.optimizer.step()
                self.optimizer.zero_grad()
        return mean_loss

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Return what the task is measured by over the validation split: sums over ranks, divided once."""
        if not self._synchronized:
            for buffer in self.network.buffers():  # without SyncBatchNorm each rank has averages of its own
                self.run.broadcast(buffer)
        network = self.network.eval()
        meter = self.objective.meter(len(self.val_split))
        loader = evaluation_batches(
            self.config,
            self.val_split,
            self.place,
            self.normalization.mean,
            self.normalization.std,
            self.folder.path / "bad_samples.jsonl",
        )
        with loader:
            for batch in loader:
                with self.run.accelerator.autocast():
                    logits = network(batch.images).float()
                meter.add(logits, batch)
        return meter.report(self.run.sum(meter.totals))

    def validate_if_due(self, state: TrainState, tracker: Tracker) -> TrainState:
        """Validate where that is due at this step and has not been done, and return the state with what was found."""
        every = self.config.train.eval_every_epochs * self.epoch_steps
        if state.validated_step == state.step or not state.is_due(every, self.schedule.total_steps):
            return state
        state = state.validated(self.validate(), self.config.best_metric)
        tracker.report_validation(state)
        return state
