"""Opening the predictor of `choral predict` and `choral serve`: a bundle, or a run directory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from choral.config import Config
from choral.core.errors import ConfigError, DataError
from choral.deploy.bundle.predictor import Form, Predictor
from choral.deploy.bundle.read import is_bundle
from choral.ensembles.missing_members import describe_missing_members, find_missing_members
from choral.inference.assembled_run import find_run
from choral.inference.evaluation_plan import compute_evaluation_hash
from choral.inference.run_models import find_trained_models, member_run_dirs
from choral.inference.trained_model import TrainedModel
from choral.inference.views import expand_views
from choral.runs.run_dir import RunDir
from choral.scoring.apply_policy import build_default_policy, describe_policy
from choral.scoring.policy import PredictionPolicy, check_policy, policy_path, read_policy


def open_predictor(target: str, device: str, form: Form, report: Callable[[str], None]) -> Predictor:
    """Return the predictor of a bundle or a run.

    Args:
        target: the directory of a bundle, or what `RunDir.find` accepts.
        device: see `Predictor.load`.
        form: see `Predictor.load`; a run has "torch" only.
        report: called with one line each about the policy and missing members.

    Raises:
        ConfigError: neither a bundle nor a run, no such form or device.
        ChoralError: no member of the run is trained.
        DataError: a damaged file, or a calibration of other weights.
    """
    if is_bundle(Path(target)):
        predictor = Predictor.load(target, device, form)
        if predictor.policy.fitted_on:
            report(f"policy of {Path(target)}: {describe_policy(predictor.policy)}")
        return predictor
    folder = find_run(target, "a bundle (a folder with bundle.json) nor a run (one with config.yaml)")
    if form != "torch":
        raise ConfigError(
            f"--form {form}: {folder.path} is a run; `choral export` makes a bundle, which can have that form"
        )
    config = folder.config()
    models, _ = find_trained_models(folder, config)
    if words := describe_missing_members(len(member_run_dirs(folder, config)), find_missing_members(folder, config)):
        report(words)
    policy = load_run_policy(folder, config, models)
    if policy.fitted_on:
        report(f"policy of {policy_path(folder)}: {describe_policy(policy)}")
    return Predictor.from_models(folder.name, models, policy, config.data.max_pixels, device)


def load_run_policy(folder: RunDir, config: Config, models: Sequence[TrainedModel]) -> PredictionPolicy:
    """Return the policy of a run: RUN/answer.json if it exists, else the mean over members and views.

    Raises:
        DataError: answer.json is damaged, or was fitted to other weights.
    """
    policy = read_policy(folder)
    if policy is None:
        outputs, names = models[0].outputs, [model.name for model in models]
        views = expand_views(config.test_views)
        return build_default_policy(outputs.task, outputs.names, names, views, config.evaluate.average)
    check_policy(folder, policy, compute_evaluation_hash(models, config.train.precision))
    unknown = sorted(set(policy.members) - {model.name for model in models})
    if unknown:
        raise DataError(
            f"{policy_path(folder)}: is damaged (no member {', '.join(unknown)}); run `choral calibrate` again"
        )
    return policy
