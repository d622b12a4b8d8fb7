"""What `choral predict` is asked to ask: a bundle, or a run as it lies there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from choral.config import Config
from choral.core.errors import ConfigError, DataError
from choral.deploy.bundle.predictor import Form, Predictor
from choral.deploy.bundle.read import is_bundle
from choral.ensembles.missing_members import absent_members, how_many
from choral.inference.assembled_run import run_named
from choral.inference.evaluation_plan import evaluation_of
from choral.inference.trained_models import TrainedModel, find_trained_models, member_run_dirs
from choral.inference.views import expand
from choral.runs.run_dir import RunDir
from choral.scoring.apply_policy import described, plain_answering
from choral.scoring.policy import PredictionPolicy, answer_path, check_answer, read_answer


def open_predictor(target: str, device: str, form: Form, say: Callable[[str], None]) -> Predictor:
    """Return what a bundle or a run answers.

    Args:
        target: folder of a bundle, or what `RunDir.find` takes.
        device: as `Predictor.load` takes it.
        form: of a bundle; of a run there are its networks alone.
        say: is told in a line each how a run answers, and who is absent.

    Raises:
        ConfigError: neither a bundle nor a run, no such form or device.
        ChoralError: no member of the run is trained.
        DataError: a damaged file, or a calibration of other weights.
    """
    if is_bundle(Path(target)):
        predictor = Predictor.load(target, device, form)
        if predictor.answering.fitted_on:
            say(f"as {Path(target)} says: {described(predictor.answering)}")
        return predictor
    folder = run_named(target, "a bundle (a folder with bundle.json) nor a run (one with config.yaml)")
    if form != "torch":
        raise ConfigError(
            f"--form {form}: {folder.path} is a run; `choral export` makes a bundle, which can have that form"
        )
    config = folder.config()
    models, _ = find_trained_models(folder, config)
    if words := how_many(len(member_run_dirs(folder, config)), absent_members(folder, config)):
        say(words)
    answering = run_answering(folder, config, models)
    if answering.fitted_on:
        say(f"as {answer_path(folder)} says: {described(answering)}")
    return Predictor.of_voices(folder.name, models, answering, config.data.max_pixels, device)


def run_answering(folder: RunDir, config: Config, models: Sequence[TrainedModel]) -> PredictionPolicy:
    """Return how a run answers: as RUN/answer.json says, else by the mean over members and views.

    Raises:
        DataError: answer.json is damaged, or was fitted to other weights.
    """
    answering = read_answer(folder)
    if answering is None:
        outputs, names = models[0].outputs, [model.name for model in models]
        views = expand(config.test_views)
        return plain_answering(outputs.task, outputs.names, names, views, config.evaluate.average)
    check_answer(folder, answering, evaluation_of(models, config.train.precision))
    unknown = sorted(set(answering.members) - {model.name for model in models})
    if unknown:
        raise DataError(
            f"{answer_path(folder)}: is damaged (no member {', '.join(unknown)}); run `choral calibrate` again"
        )
    return answering
