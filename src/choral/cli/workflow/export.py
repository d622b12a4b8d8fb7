"""The stage export, and the verbs on bundles: write, extend and verify a bundle."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from choral.cli.workflow.bundle_forms import add_forms
from choral.cli.workflow.scores import print_test_set_uses
from choral.config import Config
from choral.config.files import to_dict
from choral.core.errors import ConfigError, DataError, did_you_mean
from choral.deploy.bundle.output_dir import check_output_dir
from choral.deploy.bundle.policy_choice import PolicyRequest, choose_policy
from choral.deploy.bundle.read import is_bundle, read_bundle
from choral.deploy.bundle.verify import VerificationReport, render, verify_bundle
from choral.inference.run_models import find_trained_models
from choral.runs.run_dir import RunDir
from choral.scoring.apply_policy import describe_policy

BUNDLE = "bundle"
"""Directory of the bundle in the run directory."""


def export(
    folder: RunDir, config: Config, request: PolicyRequest, out: Path, force: bool, progress: Console
) -> dict[str, Any]:
    """Write the bundle of a run, and return a report.

    Args:
        folder, config: the run; its section `export` may differ from the stored one.
        request: the policy.
        out: the directory of the bundle.
        force: replace an existing bundle.
        progress: console for progress messages.

    Returns:
        A report as plain JSON.

    Raises:
        ConfigError, DataError, ChoralError: as `choose_policy` and `choral.deploy.bundle.write.write_bundle`.
    """
    check_output_dir(out, force)
    models, unfinished = find_trained_models(folder, config)
    if unfinished:
        _report(progress, f"{folder.path}: skipped, not trained yet: {', '.join(unfinished)}")
    policy, source = choose_policy(folder, config, models, request)
    _report(progress, f"policy {source}: {describe_policy(policy)}")
    from choral.deploy.bundle.write import write_bundle  # imports torch, after the checks that need none

    written = write_bundle(folder, config, models, policy, out, force)
    folded = ", ".join(f"{name} {count}" for name, count in written.folded.items())
    _report(progress, f"BatchNorms folded into the layers before them: {folded}")
    for split in written.verified.bundle.content["scores"]:
        print_test_set_uses(folder, split, progress)  # the model card contains its metrics
    return {
        "bundle": str(out),
        "members": list(policy.members),
        "answers": describe_policy(policy),
        "folded": dict(written.folded),
        "megabytes": written.megabytes,
        **written.verified.to_json(),
    }


def export_for_hub(folder: RunDir, members: Sequence[str], out: Path, force: bool) -> dict[str, Path]:
    """Write models of a run for timm and the Hugging Face Hub, and return the directory of each.

    Args:
        folder: the run.
        members: names of models; empty: all.
        out, force: see `choral.deploy.bundle.hub_folder.write_hub_folders`.

    Raises:
        ConfigError: there is no such model, or the directory exists.
        DataError, ChoralError: a checkpoint or a ledger is damaged, or nothing is trained.
    """
    config = folder.config()
    models, _ = find_trained_models(folder, config)
    names = [model.name for model in models]
    for name in members:
        if name not in names:
            hint = did_you_mean(name, names)
            raise ConfigError(f"--members: no model '{name}'.{hint} There are: {', '.join(names)}")
    chosen = [model for model in models if not members or model.name in members]
    from choral.deploy.bundle.hub_folder import (
        write_hub_folders,  # imports torch, after the checks that need none
    )

    return write_hub_folders(folder, config, models, chosen, out, force)


def print_hub_folders(places: Mapping[str, Path], console: Console) -> None:
    """Print what was written, and the next commands."""
    for name, path in places.items():
        lines = (
            f"{path}: {name}, unfolded weights and a model card",
            f"Load it: timm.create_model({f'local-dir:{path}'!r}, pretrained=True)",
            f"Upload it: hf upload {shlex.quote(f'YOU/{path.name}')} {shlex.quote(str(path))}",
        )
        for line in lines:
            console.print(line, markup=False, highlight=False, soft_wrap=True)


def export_stage(folder: RunDir, config: Config, progress: Console) -> Path:
    """Write RUN/bundle with the files of `export.formats` unless it exists, and return its path.

    A bundle with other weights, policy or `export` settings, or a damaged one, is replaced.

    Raises:
        ConfigError, DataError, ChoralError: as `export` and `choral.deploy.bundle.added_forms.add_forms`.
    """
    out = folder.path / BUNDLE
    reason = _reason_to_write(folder, config, out)
    if reason:
        if is_bundle(out):
            _report(progress, f"{out}: {reason}; it is written again")
        export(folder, config, PolicyRequest(), out, True, progress)
    if config.export.formats:
        add_forms(out, config.export.formats, (), "", progress)
    return out


def _reason_to_write(folder: RunDir, config: Config, out: Path) -> str:
    """Return why the stage export has to write a bundle; "": the existing one is up to date."""
    if not is_bundle(out):
        return "does not exist"
    try:
        there = read_bundle(out)
    except DataError as error:
        return f"cannot be kept ({error})"
    models, _ = find_trained_models(folder, config)
    policy, _ = choose_policy(folder, config, models, PolicyRequest())
    if there.policy.to_json() != policy.to_json():
        return "has another policy than the run"
    before, now = there.content["provenance"]["config"]["export"], to_dict(config)["export"]
    changed = sorted(key for key in now if key != "formats" and now[key] != before.get(key))
    return f"was written with another {', '.join(f'export.{key}' for key in changed)}" if changed else ""


def print_exported(report: dict[str, Any], console: Console) -> None:
    """Print what was written, and the next commands."""
    out, count = shlex.quote(report["bundle"]), len(report["members"])
    worst = max(check["difference"] for check in report["checks"])
    lines = (
        f"{out}: {count} network{'s' * (count > 1)}, {report['megabytes']:.1f} MB; folding changes a probability by at most "
        f"{worst:.1e} on {report['samples']} golden samples",
        f"Predict: choral predict {out} IMAGE...",
        f"Verify: choral verify {out}",
        f"Model card: {out}/README.md",
    )
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def verify(path: Path, device: str, tolerance: float | None) -> VerificationReport:
    """Verify the checksums of a bundle, and predict the golden samples with every form."""
    return verify_bundle(path, device, tolerance)


def print_verified(verified: VerificationReport, console: Console) -> None:
    """Print the check of each form."""
    table = Table(box=None, pad_edge=False)
    for heading in ("form", "largest difference", "decisions", ""):
        table.add_column(heading)
    for row in render(verified):
        table.add_row(*row)
    console.print(table)
    pixels = "as exported"
    if verified.pixels:
        pixels = f"NOT as exported, by up to {verified.pixels} levels of 255 (decoders of other versions may differ by a few)"
    console.print(f"{verified.samples} golden samples; pixels {pixels}; all checksums match", highlight=False)


def exported_config(config: Config, golden: int | None) -> Config:
    """Return a config with another number of golden samples; None: unchanged."""
    return config if golden is None else config.replace(export=config.export.replace(golden=golden))


def _report(progress: Console, text: str) -> None:
    progress.print(text, markup=False, highlight=False, soft_wrap=True)
