"""train.lr: auto: the chosen rate, the restored state, and the figure."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from choral.config.files import load_config
from choral.core.errors import ChoralError, Stopped
from choral.core.figures import render_svg
from choral.core.process_group import Runtime
from choral.data.loading.device_loader import Batch
from choral.runs.run_dir import RunDir
from choral.training import range_test
from choral.training.loop import train
from choral.training.range_test import LossCurve, find_learning_rate, run_range_test
from choral.training.range_test_figure import draw_loss_curve
from choral.training.trainer import Trainer
from drawn_figures import misplaced_texts, svg_texts
from toy_data import make_run_dir


def curve_of(loss: list[float]) -> LossCurve:
    curve = LossCurve((), (), ())
    for number, value in enumerate(loss):
        curve = curve.add(10 ** (-6 + number / 10), value)
        if curve.diverged:
            break
    return curve


def test_chosen_rate_is_a_tenth_of_that_at_the_lowest_loss() -> None:
    """The loss falls slowly up to a rate of 10^-2 and explodes there."""
    curve = curve_of([2 - number / 40 for number in range(41)] + [1.0 * 2**number for number in range(30)])
    assert curve.diverged and len(curve.rates) < 55
    lowest = min(zip(curve.smoothed, curve.rates, strict=True))[1]
    assert 1e-2 < lowest < 3e-2
    assert curve.choose() == pytest.approx(lowest / 10)


def test_smoothing_equals_a_plain_loop() -> None:
    curve = curve_of([3.0, 2.0, 4.0])
    average = 0.0
    for count, loss in enumerate([3.0, 2.0, 4.0], start=1):
        average = 0.9 * average + 0.1 * loss
        assert curve.smoothed[count - 1] == pytest.approx(average / (1 - 0.9**count))


def test_loss_that_never_falls_is_an_error() -> None:
    with pytest.raises(ChoralError, match="no learning rate made the loss fall"):
        curve_of([1.0 + number / 10 for number in range(50)]).choose()


def test_range_test_restores_everything_and_is_reproducible(
    config_file: Path, tmp_path: Path, run: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(config_file, ["train.lr=auto", "train.optimizer=adamw", "train.steps=4"])
    folder = RunDir(tmp_path / "run")
    folder.path.mkdir()
    trainer = Trainer(config, folder, run)
    before = {name: value.clone() for name, value in trainer.network.state_dict().items()}
    monkeypatch.setattr(range_test, "STEPS", 40)
    first = run_range_test(trainer)
    assert len(first.rates) > 20
    assert all(torch.equal(value, before[name]) for name, value in trainer.network.state_dict().items())
    assert not trainer.optimizer.state and math.isnan(trainer.schedule.lr)
    find_learning_rate(trainer)
    kept = json.loads((folder.path / "lr_range.json").read_text())
    assert trainer.schedule.lr == kept["lr"] == first.choose()
    assert tuple(kept["losses"]) == first.losses and tuple(kept["rates"]) == first.rates
    assert 1e-6 < kept["lr"] < 1
    (folder.path / "lr_range.json").write_text(json.dumps(kept | {"lr": 0.0123}))
    state = train(config, folder, run)  # takes the rate that is there
    assert state.step == 4
    rates = [json.loads(line) for line in (folder.path / "metrics.jsonl").read_text().splitlines()]
    assert rates[0]["lr"] == pytest.approx(0.0123 * 2 / 4)
    (folder.path / "lr_range.json").unlink()
    assert train(config, folder, run).step == 4  # the checkpoint knows it, too


def test_speed_settings_do_not_repeat_the_test(
    config_file: Path, tmp_path: Path, run: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With lanes that do not divide the default batch size, which the run does not use."""
    curve = curve_of([2 - number / 40 for number in range(41)])
    made: list[Trainer] = []
    monkeypatch.setattr(range_test, "run_range_test", lambda trainer: made.append(trainer) or curve)
    overrides = ["train.lr=auto", "data.lanes=3", "data.cache_gib=0", "data.shrink_jpegs=true"]
    folder = make_run_dir(tmp_path / "run")
    for further, tests in (
        ([], 1),
        (["data.workers=1", "train.timeout_s=77", "tracking.project=x", "run=other", "evaluate.views=[identity]"], 1),
        (["train.momentum=0.8"], 2),
    ):
        trainer = Trainer(load_config(config_file, [*overrides, *further]), folder, run)
        find_learning_rate(trainer)
        assert len(made) == tests and trainer.schedule.lr == curve.choose()


def test_stop_request_ends_the_test(config_file: Path, tmp_path: Path, run: Runtime) -> None:
    folder = make_run_dir(tmp_path / "run")
    trainer = Trainer(load_config(config_file, ["train.lr=auto"]), folder, run)
    before = {name: value.clone() for name, value in trainer.network.state_dict().items()}
    folder.stop_file.touch()
    with pytest.raises(Stopped, match="stopped by request during the range test"):
        find_learning_rate(trainer)
    assert not folder.stop_file.exists() and not (folder.path / "lr_range.json").exists()
    assert all(torch.equal(value, before[name]) for name, value in trainer.network.state_dict().items())
    assert not trainer.optimizer.state and math.isnan(trainer.schedule.lr)


def test_non_finite_first_loss_is_an_error(config_file: Path, tmp_path: Path, run: Runtime) -> None:
    folder = make_run_dir(tmp_path / "run")
    trainer = Trainer(load_config(config_file, ["train.lr=auto"]), folder, run)
    trainer.network.fc.bias.data[0] = float("nan")
    with pytest.raises(ChoralError, match=r"lr: auto: .* \(step 0: the loss on rank 0 is not finite\).*check the data"):
        find_learning_rate(trainer)
    assert not (folder.path / "lr_range.svg").exists()


def test_gradual_is_tested_with_its_last_phase(
    config_file: Path, tmp_path: Path, run: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(range_test, "STEPS", 2)
    folder = make_run_dir(tmp_path / "run")
    trainer = Trainer(load_config(config_file, ["train.lr=auto", "finetune.strategy=gradual"]), folder, run)
    assert len(trainer.phases) > 1
    seen, step = [], trainer.train_step

    def watched(batches: Iterator[Batch], number: int) -> torch.Tensor:
        seen.append({name for name, value in trainer.network.named_parameters() if value.requires_grad})
        return step(batches, number)

    monkeypatch.setattr(trainer, "train_step", watched)
    run_range_test(trainer)
    assert seen == [trainer.phases[-1].trained] * 2
    now = {name for name, value in trainer.network.named_parameters() if value.requires_grad}
    assert trainer.phase is trainer.phases[0] and now == trainer.phases[0].trained


@pytest.mark.parametrize("growth", [1.0, 1.2, 2.0])
def test_figure_has_all_steps_and_marks_the_rate(growth: float) -> None:
    curve = curve_of([2 - number / 40 for number in range(41)] + [1.0 * growth**number for number in range(30)])
    figure = draw_loss_curve(curve.rates, curve.losses, curve.smoothed, curve.choose())
    content = render_svg(figure)
    texts = svg_texts(content)
    assert {"learning rate", "training loss", f"chosen: {curve.choose():.1e}", "10⁻⁶", "10⁻²"} <= set(texts)
    assert misplaced_texts(content) == [] and b"nan" not in content
    (axes,) = figure.axes
    steps, smoothed, _ = axes.lines
    assert steps.get_xydata().tolist() == [list(point) for point in zip(curve.rates, curve.losses, strict=True)]
    assert smoothed.get_xydata().tolist() == [list(point) for point in zip(curve.rates, curve.smoothed, strict=True)]
    assert axes.get_ylim()[1] < 4, "a divergence leaves the axis"
    assert "chosen" not in " ".join(
        svg_texts(render_svg(draw_loss_curve(curve.rates, curve.losses, curve.smoothed, None)))
    )
