"""What the steps of one run share: the network, its optimizer and schedule, the data; and the tensors of one step."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from choral.config import Config, TrainConfig
from choral.core.counter_rng import key_of
from choral.core.errors import ConfigError, DataError
from choral.core.process_group import Runtime
from choral.data.loading.boosting_weights import run_folder_of, weights_of_round
from choral.data.loading.device_loader import Batch, DeviceLoader
from choral.data.loading.input_pipeline import (
    RankPlace,
    Split,
    evaluation_batches,
    open_dataset,
    open_split,
    open_training_split,
    steps_per_epoch,
    training_batches,
)
from choral.models.build import Normalization, build_model, normalization_of
from choral.models.checkpoint_tensors import OptimizerState, optimizer_state, restore_optimizer
from choral.models.finetuning import Phase, apply_phase, phases_of, stages_of, train_mode
from choral.models.pretrained_weights import resolve_weights
from choral.models.sync_batchnorm import synchronize_batchnorm
from choral.runs.memory import explained
from choral.runs.run_dir import RunDir
from choral.training.finite_checks import SKIPS_IN_A_ROW, NotFinite, check_gradient, check_loss, ranks_not_finite
from choral.training.objective import Objective
from choral.training.optimizer import Schedule, build_optimizer
from choral.training.state import TrainState
from choral.training.weight_averages import MovingAverage, Weights, holding

_DROPOUT = 7  # purpose of the random numbers that layers draw


class Trainer:
    """What the steps of one run share: the network, its optimizer and schedule, the data.

    Public for tests, which take single steps; everybody else calls `train`.
    """

    def __init__(self, config: Config, folder: RunDir, run: Runtime) -> None:
        self.config, self.folder, self.run = config, folder, run
        dataset = open_dataset(config.data)
        self.place = RankPlace(run.rank, run.world_size, run.device, run.local_world_size)
        self.fingerprint = dataset.fingerprint
        self.train_split: Split = self._weighted(open_training_split(config, dataset, self.place))
        self.val_split: Split = open_split(config, dataset, config.data.val_split, self.place)
        self.objective = Objective.of(config, self.train_split, run.device)
        self.epoch_steps = steps_per_epoch(config, self.train_split)
        self.schedule = Schedule.of(config.train, self.epoch_steps)
        self.last_rate, self.last_skips = 0.0, 0

        network = build_model(
            resolve_weights(config.model), self.objective.outputs, config.data.image_size, config.seed
        )
        self.normalization: Normalization = normalization_of(network)
        self._head = frozenset(stages_of(network)[-1])
        self.phases = phases_of(network, config.finetune, self.epoch_steps, self.schedule.total_steps)
        _check_first_cycle(self.phases, self.schedule)
        self._synchronized = config.model.sync_batchnorm and run.world_size > 1
        if self._synchronized:
            network = synchronize_batchnorm(network, run.device.type)
        self.phase = self.phases[0]
        self._prepare(network, OptimizerState())
        self.average: MovingAverage | None = None
        self.soup: Weights | None = None

    def _weighted(self, split: Split) -> Split:
        """Return the training split with what its samples weigh in a round of boosting."""
        resample = self.config.data.resample
        if resample.kind != "boost":
            return split
        return replace(split, weights=weights_of_round(run_folder_of(self.folder), resample.number, split.index))

    @property
    def network(self) -> nn.Module:
        """The network itself, outside DistributedDataParallel."""
        network = self.run.accelerator.unwrap_model(self.model)
        assert isinstance(network, nn.Module)
        return network

    def enter_phase(self, step: int) -> bool:
        """Train what is to be trained from `step` on, and return whether that is something else than before.

        What the optimizer knows of parameters that go on being trained is kept.
        """
        phase = next(phase for phase in reversed(self.phases) if phase.start_step <= step)
        if phase is self.phase:
            return False
        self.phase = phase
        network = self.network
        self._prepare(network, optimizer_state(self.optimizer, network))
        return True

    def is_done(self, state: TrainState) -> bool:
        """Whether all steps are made, or validation has not improved for `patience_epochs`."""
        patience = self.config.train.patience_epochs * self.epoch_steps
        return state.step >= self.schedule.total_steps or state.out_of_patience(patience)

    def begin(self, phase: Phase) -> None:
        """Begin a phase with a new optimizer, as if no step had been made; weights stay as they are."""
        self.phase = phase
        self._prepare(self.network, OptimizerState())

    def _prepare(self, network: nn.Module, known: OptimizerState) -> None:
        """Wrap the network anew for the parameters that the phase trains, with an optimizer for exactly those."""
        accelerator = self.run.accelerator
        self.model: nn.Module = network
        self._forward: Callable[[Tensor], Tensor] = network
        accelerator.free_memory()  # of the wrapper and the optimizer of the phase before
        network = accelerator.unwrap_model(network, keep_fp32_wrapper=False)
        vars(network).pop("_is_accelerate_prepared", None)
        apply_phase(network, self.phase)
        network.zero_grad(set_to_none=True)
        optimizer = build_optimizer(network, self.config.train, self._head)
        with warnings.catch_warnings():  # until PyTorch's new name has both of the old one's meanings
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            self.model, self.optimizer = accelerator.prepare(network, optimizer)
        restore_optimizer(self.optimizer, network, known)
        # Compiled beside the module, so that names in checkpoints stay plain and validation runs as it is.
        self._forward = torch.compile(self.model) if self.config.train.compile else self.model

    def start_average(self) -> None:
        """Begin the moving average, if there is to be one, with the weights as they are now."""
        if self.config.train.ema_decay:
            self.average = MovingAverage(self.network, self.config.train.ema_decay)

    def batches_from(self, step: int) -> DeviceLoader:
        """Return the loader of this rank's micro-batches from an optimizer step to the last one."""
        return self.batches_of(range(step, self.schedule.total_steps))

    def batches_of(self, steps: range) -> DeviceLoader:
        """Return the loader of this rank's micro-batches of the given optimizer steps."""
        return training_batches(
            self.config,
            self.train_split,
            self.place,
            self.normalization.mean,
            self.normalization.std,
            steps,
            self.folder.path / "bad_samples.jsonl",
        )

    def train_step(self, batches: Iterator[Batch], step: int) -> Tensor:
        """Take one optimizer step over `accumulate_steps` micro-batches.

        Where fp16 overflows, the same samples are tried again with half the loss scale: which samples make which step,
        and at which rate, stays a function of the step, and a checkpoint never lies between two attempts. (The running
        statistics of BatchNorm take in those samples once an attempt, which is the same at every start.)

        Returns:
            this rank's share of the mean loss over the global batch, 0-d on the device; the sum over ranks is the mean.

        Raises:
            NotFinite: on every rank alike, the loss or the gradient; with fp16, at each of many attempts. No update was
                made.
        """
        config, scaler = self.config.train, self.run.accelerator.scaler
        train_mode(self.model)
        self.last_rate = self.schedule.apply(self.optimizer, step)
        micro_batches = (next(batches) for _ in range(config.micro_batches))
        kept = micro_batches if scaler is None else list(micro_batches)
        for attempt in range(SKIPS_IN_A_ROW):
            loss = self._gradients(kept, step)
            if scaler is None or attempt == SKIPS_IN_A_ROW - 1:
                check_loss(self.run, loss, step)
            elif ranks_not_finite(self.run, loss):  # fp16 may have overflowed on the way forward, too
                _spoil_gradient(self.model)
            if scaler is not None:
                scaler.unscale_(self.optimizer.optimizer)
            # torch's own: Accelerate's differs for other kinds of parallelism, and would unscale a second time.
            norm = nn.utils.clip_grad_norm_(self.model.parameters(), config.max_grad_norm or float("inf"))
            if scaler is None:
                check_gradient(norm, loss, step)
            self.optimizer.step()
            self.optimizer.zero_grad()
            if not self.optimizer.step_was_skipped:
                self.last_skips = attempt
                if self.average is not None:
                    self.average.update(self.network, step)
                return loss
        raise NotFinite(
            f"step {step}: the gradient overflowed fp16 {SKIPS_IN_A_ROW} times in a row, with a loss scale down to "
            f"{scaler.get_scale():g}; no update was made. Use train.precision: bf16, or lower train.lr"
        )

    def _gradients(self, micro_batches: Iterable[Batch], step: int) -> Tensor:
        """Add up the gradient of the mean loss over the global batch, and return this rank's share of that loss."""
        config, accelerator = self.config.train, self.run.accelerator
        size = config.batch_size // config.micro_batches
        mean_loss = torch.zeros((), device=self.run.device)
        instead = "set train.accumulate_steps: auto, or to a higher number, or lower data.image_size"
        for micro, batch in enumerate(micro_batches):
            # Layers that draw random numbers do so from a state that is computed, so that none has to be saved.
            torch.manual_seed(int(key_of(self.config.seed, _DROPOUT, step, micro, self.run.rank) >> 1))
            with explained(len(batch.rows), _key(config), instead), accelerator.accumulate(self.model):
                with accelerator.autocast():
                    logits = self._forward(batch.images)
                # Ranks may hold slices of different sizes: dividing by the size of the whole micro-batch, times the
                # world size that DDP's mean divides by, gives the gradient of the mean over all samples.
                loss = self.objective.losses(logits, batch).sum() / size
                accelerator.backward(loss * self.run.world_size)
                mean_loss += loss.detach() / config.micro_batches
        return mean_loss

    def validate(self) -> dict[str, float]:
        """Return what the task is measured by over the validation split; of the moving average as "ema_" and the name."""
        report = self.measure()
        if self.average is not None:
            with holding(self.network, self.average.weights):
                averaged = self.measure()
            report |= {f"ema_{key}": value for key, value in averaged.items() if key != "n"}
        return report

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """Return what the task is measured by over the validation split, the same on all ranks.

        Sums over ranks are divided once. Without SyncBatchNorm, ranks have running statistics of their own: those of the
        main rank count.

        Raises:
            DataError: on all ranks alike, no sample of the split could be read.
        """
        if not self._synchronized:
            for buffer in self.network.buffers():
                self.run.broadcast(buffer)
        network = self.network.eval()
        meter = self.objective.meter(len(self.val_split))
        read = torch.zeros((), device=self.run.device)
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
                with (
                    explained(len(batch.rows), "evaluate.batch_size", "lower it, or set it to auto"),
                    self.run.accelerator.autocast(),
                ):
                    logits = network(batch.images).float()
                meter.add(logits, batch)
                read += batch.valid.sum()
        if not self.run.sum(read).item():
            index = self.val_split.index
            raise DataError(
                f"{index.dataset.folder}: no sample of split '{index.split}' could be read, so nothing can be measured; "
                f"see {self.folder.path / 'bad_samples.jsonl'}, and pack it again"
            )
        report = meter.report(self.run.sum(meter.totals))
        agreed = torch.tensor(list(report.values()), dtype=torch.float64, device=self.run.device)
        return dict(zip(report, self.run.broadcast(agreed).tolist(), strict=True))


def _key(config: TrainConfig) -> str:
    """Return what decides how many images are in memory, for messages."""
    return f"train.batch_size: {config.batch_size}, train.accumulate_steps: {config.accumulate_steps}"


def _check_first_cycle(phases: Sequence[Phase], schedule: Schedule) -> None:
    """Refuse snapshots of networks of which a part has not been trained yet."""
    first, last = schedule.end_of(1), phases[-1].start_step
    if schedule.cycles > 1 and last >= first:
        raise ConfigError(
            f"finetune.unfreeze_every_epochs: the last stage joins at step {last}, but the first of {schedule.cycles} cycles "
            f"ends at step {first}, with a network that is not fully trained: unfreeze faster, or train longer"
        )


def _spoil_gradient(model: nn.Module) -> None:
    """Let a loss scaler find an overflow, on a rank that has none of its own, so that no rank makes an update."""
    next(parameter.grad for parameter in model.parameters() if parameter.grad is not None).fill_(float("inf"))
