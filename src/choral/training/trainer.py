"""`Trainer`: the model, optimizer, schedule and data of a training run, and the tensors of one optimizer step."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from choral.config import Config
from choral.core.counter_rng import make_key
from choral.core.errors import ConfigError, DataError
from choral.core.process_group import Runtime
from choral.data.loading.boosting_weights import parent_run_dir, read_round_weights
from choral.data.loading.device_loader import Batch, DeviceLoader
from choral.data.loading.input_pipeline import InputPipeline
from choral.data.loading.input_spec import Normalization
from choral.data.loading.rank_place import RankPlace
from choral.data.loading.split import Split, open_dataset, open_split, open_training_split
from choral.data.loading.training_plan import TrainingPlan
from choral.models.build import build_model, get_normalization
from choral.models.checkpoint_tensors import OptimizerState, optimizer_state, restore_optimizer
from choral.models.finetuning import Phase, apply_phase, build_phases, list_stages, train_mode
from choral.models.pretrained_weights import resolve_weights
from choral.models.sync_batchnorm import synchronize_batchnorm
from choral.runs.memory import explain_out_of_memory
from choral.runs.run_dir import RunDir
from choral.training.finite_checks import MAX_ATTEMPTS, NotFinite, check_gradient, check_loss, find_non_finite_ranks
from choral.training.objective import Objective
from choral.training.optimizer import Schedule, build_optimizer
from choral.training.state import TrainState
from choral.training.weight_averages import MovingAverage, Weights, temporary_weights

_DROPOUT = 7  # stream number of the random numbers that layers draw


class Trainer:
    """The model, optimizer, schedule and data of a training run.

    `train` in loop.py drives it. Tests use it directly, to take single steps.
    """

    def __init__(self, config: Config, run_dir: RunDir, runtime: Runtime) -> None:
        self.config, self.run_dir, self.runtime = config, run_dir, runtime
        dataset = open_dataset(config.data)
        self.place = RankPlace(runtime.rank, runtime.world_size, runtime.device, runtime.local_world_size)
        self.fingerprint = dataset.fingerprint
        self.train_split: Split = self._add_boosting_weights(open_training_split(config, dataset, self.place))
        self.val_split: Split = open_split(config, dataset, config.data.val_split, self.place)
        weight_losses = config.data.resample.by == "loss"
        self.objective = Objective.from_config(config.train, self.train_split, runtime.device, weight_losses)
        self.steps_per_epoch = TrainingPlan.from_config(config, self.train_split).steps_per_epoch
        self.schedule = Schedule.from_config(config.train, self.steps_per_epoch)
        self.last_lr, self.last_overflows = 0.0, 0

        network = build_model(
            resolve_weights(config.model), self.objective.num_outputs, config.data.image_size, config.seed
        )
        self.normalization: Normalization = get_normalization(network)
        self._head = frozenset(list_stages(network)[-1])
        self.phases = build_phases(network, config.finetune, self.steps_per_epoch, self.schedule.total_steps)
        _check_first_cycle(self.phases, self.schedule)
        self._synchronized = config.model.sync_batchnorm and runtime.world_size > 1
        if self._synchronized:
            network = synchronize_batchnorm(network, runtime.device.type)
        self.phase = self.phases[0]
        self._prepare(network, OptimizerState())
        self.average: MovingAverage | None = None
        self.soup: Weights | None = None

    def _add_boosting_weights(self, split: Split) -> Split:
        """Return the training split with its sample weights, in a boosting round."""
        resample = self.config.data.resample
        if resample.kind != "boost":
            return split
        return replace(split, weights=read_round_weights(parent_run_dir(self.run_dir), resample.number, split.index))

    @property
    def network(self) -> nn.Module:
        """The model without DistributedDataParallel around it."""
        network = self.runtime.accelerator.unwrap_model(self.model)
        assert isinstance(network, nn.Module)
        return network

    def enter_phase(self, step: int) -> bool:
        """Switch to the phase that `step` belongs to, and return whether that is another one than before.

        Parameters that are trained in both phases keep their optimizer state.
        """
        phase = next(phase for phase in reversed(self.phases) if phase.start_step <= step)
        if phase is self.phase:
            return False
        self.phase = phase
        network = self.network
        self._prepare(network, optimizer_state(self.optimizer, network))
        return True

    def is_finished(self, state: TrainState) -> bool:
        """Return whether all steps are made, or validation has not improved for `patience_epochs`."""
        patience = self.config.train.patience_epochs * self.steps_per_epoch
        return state.step >= self.schedule.total_steps or state.out_of_patience(patience)

    def restart_phase(self, phase: Phase) -> None:
        """Start a phase with a new optimizer, as if no step had been made; the weights stay as they are."""
        self.phase = phase
        self._prepare(self.network, OptimizerState())

    def _prepare(self, network: nn.Module, state: OptimizerState) -> None:
        """Wrap the model for the parameters that the phase trains, with an optimizer for exactly those.

        Args:
            network: wrapped or not.
            state: loaded into the new optimizer.
        """
        accelerator = self.runtime.accelerator
        self.model: nn.Module = network
        self._forward: Callable[[Tensor], Tensor] = network
        accelerator.free_memory()  # held by the wrapper and optimizer of the last phase
        network = accelerator.unwrap_model(network, keep_fp32_wrapper=False)
        vars(network).pop("_is_accelerate_prepared", None)
        apply_phase(network, self.phase)
        network.zero_grad(set_to_none=True)
        optimizer = build_optimizer(network, self.config.train, self._head)
        with warnings.catch_warnings():  # PyTorch's new name does not cover both of its meanings yet
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            self.model, self.optimizer = accelerator.prepare(network, optimizer)
        restore_optimizer(self.optimizer, network, state)
        # The module itself is not replaced: checkpoints keep their names, and validation runs uncompiled.
        self._forward = torch.compile(self.model) if self.config.train.compile else self.model

    def start_moving_average(self) -> None:
        """Start the moving average from the current weights, if `train.ema_decay` asks for one."""
        if self.config.train.ema_decay:
            self.average = MovingAverage(self.network, self.config.train.ema_decay)

    def batches_from(self, step: int) -> DeviceLoader:
        """Return the loader of this rank's micro-batches, from optimizer step `step` to the last one."""
        return self.batches_in(range(step, self.schedule.total_steps))

    @property
    def train_inputs(self) -> InputPipeline:
        """The input pipeline of the training split."""
        return InputPipeline(self.config, self.train_split, self.place, self.normalization, self.run_dir.bad_log)

    @property
    def val_inputs(self) -> InputPipeline:
        """The input pipeline of the validation split."""
        return InputPipeline(self.config, self.val_split, self.place, self.normalization, self.run_dir.bad_log)

    def batches_in(self, steps: range) -> DeviceLoader:
        """Return the loader of this rank's micro-batches of the given optimizer steps."""
        return self.train_inputs.training_batches(steps)

    def train_step(self, batches: Iterator[Batch], step: int) -> Tensor:
        """Make one optimizer step over `accumulate_steps` micro-batches.

        If fp16 overflows, the step is repeated on the same samples with half the loss scale. So the samples and the
        learning rate of a step remain functions of the step, and no checkpoint lies between two attempts. (BatchNorm's
        running statistics see the samples once per attempt, which is the same at every start.)

        Returns:
            This rank's share of the mean loss over the global batch, 0-d on the device; the sum over ranks is the mean.

        Raises:
            NotFinite: on all ranks, if the loss or the gradient is not finite; with fp16, after `MAX_ATTEMPTS` overflows.
                No update was made.
        """
        config, scaler = self.config.train, self.runtime.accelerator.scaler
        train_mode(self.model)
        self.last_lr = self.schedule.apply(self.optimizer, step)
        micro_batches = (next(batches) for _ in range(config.micro_batches))
        repeatable = micro_batches if scaler is None else list(micro_batches)
        for attempt in range(MAX_ATTEMPTS):
            loss = self._accumulate_gradients(repeatable, step)
            if scaler is None or attempt == MAX_ATTEMPTS - 1:
                check_loss(self.runtime, loss, step)
            elif find_non_finite_ranks(self.runtime, loss):  # fp16 can overflow in the forward pass, too
                _force_overflow(self.model)
            if scaler is not None:
                scaler.unscale_(self.optimizer.optimizer)
            # PyTorch's function, because Accelerate's would unscale a second time.
            norm = nn.utils.clip_grad_norm_(self.model.parameters(), config.max_grad_norm or float("inf"))
            if scaler is None:
                check_gradient(norm, loss, step)
            self.optimizer.step()
            self.optimizer.zero_grad()
            if not self.optimizer.step_was_skipped:
                self.last_overflows = attempt
                if self.average is not None:
                    self.average.update(self.network, step)
                return loss
        raise NotFinite(
            f"step {step}: the gradient overflowed fp16 {MAX_ATTEMPTS} times in a row, with a loss scale down to "
            f"{scaler.get_scale():g}; no update was made. Use train.precision: bf16, or lower train.lr"
        )

    def _accumulate_gradients(self, micro_batches: Iterable[Batch], step: int) -> Tensor:
        """Accumulate the gradient of the mean loss over the global batch, and return this rank's share of that loss."""
        config, accelerator = self.config.train, self.runtime.accelerator
        size = config.batch_size // config.micro_batches
        mean_loss = torch.zeros((), device=self.runtime.device)
        settings = f"train.batch_size: {config.batch_size}, train.accumulate_steps: {config.accumulate_steps}"
        remedy = "set train.accumulate_steps: auto, or to a higher number, or lower data.image_size"
        for micro, batch in enumerate(micro_batches):
            # Dropout and the like start from a computed seed, so that no random state has to be saved.
            torch.manual_seed(int(make_key(self.config.seed, _DROPOUT, step, micro, self.runtime.rank) >> 1))
            with (
                explain_out_of_memory(len(batch.rows), settings, remedy),
                accelerator.accumulate(self.model),
            ):
                with accelerator.autocast():
                    logits = self._forward(batch.images)
                # Ranks may hold slices of different sizes. Dividing by the size of the whole micro-batch, and multiplying
                # by the world size that DDP divides by, gives the gradient of the mean over all samples.
                loss = self.objective.losses(logits, batch).sum() / size
                accelerator.backward(loss * self.runtime.world_size)
                mean_loss += loss.detach() / config.micro_batches
        return mean_loss

    def validate(self) -> dict[str, float]:
        """Return the validation metrics of the current weights, and with "ema_" before the name of the moving average."""
        report = self.evaluate()
        if self.average is not None:
            with temporary_weights(self.network, self.average.weights):
                averaged = self.evaluate()
            report |= {f"ema_{key}": value for key, value in averaged.items() if key != "n"}
        return report

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Return the validation metrics of the current weights, the same on all ranks.

        Sums over ranks are divided once. Without SyncBatchNorm, each rank has its own running statistics; those of the
        main rank are used.

        Raises:
            DataError: on all ranks, if no sample of the split could be read.
        """
        if not self._synchronized:
            for buffer in self.network.buffers():
                self.runtime.broadcast(buffer)
        network = self.network.eval()
        meter = self.objective.meter(len(self.val_split))
        read = torch.zeros((), device=self.runtime.device)
        with self.val_inputs.evaluation_batches() as loader:
            for batch in loader:
                with (
                    explain_out_of_memory(len(batch.rows), "evaluate.batch_size", "lower it, or set it to auto"),
                    self.runtime.accelerator.autocast(),
                ):
                    logits = network(batch.images).float()
                meter.add(logits, batch)
                read += batch.valid.sum()
        if not self.runtime.sum(read).item():
            index = self.val_split.index
            raise DataError(
                f"{index.dataset.folder}: no sample of split '{index.split}' could be read, so there are no metrics; "
                f"see {self.run_dir.bad_log}, and pack it again"
            )
        report = meter.report(self.runtime.sum(meter.totals))
        values = torch.tensor(list(report.values()), dtype=torch.float64, device=self.runtime.device)
        return dict(zip(report, self.runtime.broadcast(values).tolist(), strict=True))


def _check_first_cycle(phases: Sequence[Phase], schedule: Schedule) -> None:
    """Raise ConfigError if the first snapshot is taken before all stages are trained."""
    first_end, last_start = schedule.cycle_end(1), phases[-1].start_step
    if schedule.cycles > 1 and last_start >= first_end:
        raise ConfigError(
            f"finetune.unfreeze_every_epochs: the last stage is unfrozen at step {last_start}, but the first of "
            f"{schedule.cycles} cycles ends at step {first_end}, before the whole model is trained: "
            "unfreeze faster, or train longer"
        )


def _force_overflow(model: nn.Module) -> None:
    """Make the loss scaler of this rank find an overflow, so that no rank makes an update."""
    next(parameter.grad for parameter in model.parameters() if parameter.grad is not None).fill_(float("inf"))
