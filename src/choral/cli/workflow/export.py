"""The bundle of a run: written, given further forms, verified."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from choral.cli.workflow.bundle_forms import add_forms
from choral.cli.workflow.scores import print_looks
from choral.config import Config
from choral.config.files import to_values
from choral.core.errors import ConfigError, DataError, did_you_mean
from choral.deploy.bundle.output_dir import check_place
from choral.deploy.bundle.policy_choice import Wanted, chosen_answer
from choral.deploy.bundle.read import is_bundle, read_bundle
from choral.deploy.bundle.verify import Verified, render, verify_bundle
from choral.inference.trained_models import find_trained_models
from choral.runs.run_dir import RunDir
from choral.scoring.apply_policy import described

BUNDLE = "bundle"
"""Folder in a run's, where the stage export leaves it."""


def export(folder: RunDir, config: Config, wanted: Wanted, out: Path, force: bool, progress: Console) -> dict[str, Any]:
    """Write the bundle of a run and say what is in it.

    Args:
        folder, config: of the run; the section `export` may differ from the stored one.
        wanted: how it answers.
        out: the folder.
        force: replace one that is there.
        progress: console of what goes on.

    Returns:
        What was written, as plain JSON.

    Raises:
        ConfigError, DataError, ChoralError: as `chosen_answer` and `choral.deploy.bundle.write.write_bundle`.
    """
    check_place(out, force)
    models, unfinished = find_trained_models(folder, config)
    if unfinished:
        _say(progress, f"{folder.path}: not trained, and left out: {', '.join(unfinished)}")
    answering, source = chosen_answer(folder, config, models, wanted)
    _say(progress, f"answers {source}: {described(answering)}")
    from choral.deploy.bundle.write import write_bundle  # torch, once all that can be wrong without it was found

    written = write_bundle(folder, config, models, answering, out, force)
    folded = ", ".join(f"{name} {count}" for name, count in written.folded.items())
    _say(progress, f"norms folded into the layers before them: {folded}")
    for split in written.verified.bundle.content["scores"]:
        print_looks(folder, split, progress)  # the model card shows its figures
    return {
        "bundle": str(out),
        "members": list(answering.members),
        "answers": described(answering),
        "folded": dict(written.folded),
        "megabytes": written.megabytes,
        **written.verified.to_json(),
    }


def export_for_hub(folder: RunDir, members: Sequence[str], out: Path, force: bool) -> dict[str, Path]:
    """Write networks of a run as timm and the Hugging Face Hub take them; return the folder of each.

    Args:
        folder: of the run.
        members: names of networks; none: all.
        out, force: as of `choral.deploy.bundle.hub_folder.write_hub_folders`.

    Raises:
        ConfigError: no such network, or the folder is there.
        DataError, ChoralError: a checkpoint or a ledger is damaged, or nothing is trained.
    """
    config = folder.config()
    models, _ = find_trained_models(folder, config)
    names = [model.name for model in models]
    for name in members:
        if name not in names:
            hint = did_you_mean(name, names)
            raise ConfigError(f"--members: no network '{name}'.{hint} There are: {', '.join(names)}")
    chosen = [model for model in models if not members or model.name in members]
    from choral.deploy.bundle.hub_folder import (
        write_hub_folders,  # torch, once all that can be wrong without it was found
    )

    return write_hub_folders(folder, config, models, chosen, out, force)


def print_hub_folders(places: Mapping[str, Path], console: Console) -> None:
    """Print what was written, and what can be done with it."""
    for name, path in places.items():
        lines = (
            f"{path}: {name}, its weights as they were trained, and a model card",
            f"Load it: timm.create_model({f'local-dir:{path}'!r}, pretrained=True)",
            f"Upload it: hf upload {shlex.quote(f'YOU/{path.name}')} {shlex.quote(str(path))}",
        )
        for line in lines:
            console.print(line, markup=False, highlight=False, soft_wrap=True)


def export_stage(folder: RunDir, config: Config, progress: Console) -> Path:
    """Leave RUN/bundle with the forms of `export.formats`, unless it is there already; return where it is.

    One of other weights, answers or `export` settings is replaced, and so is a damaged one.

    Raises:
        ConfigError, DataError, ChoralError: as `export` and `choral.deploy.bundle.added_forms.add_forms`.
    """
    out = folder.path / BUNDLE
    why = _why_not_kept(folder, config, out)
    if why:
        if is_bundle(out):
            _say(progress, f"{out}: {why}; it is written again")
        export(folder, config, Wanted(), out, True, progress)
    if config.export.formats:
        add_forms(out, config.export.formats, (), "", progress)
    return out


def _why_not_kept(folder: RunDir, config: Config, out: Path) -> str:
    """Return why the stage export has to write a bundle; "": the one that is there is what it would write."""
    if not is_bundle(out):
        return "is not there"
    try:
        there = read_bundle(out)
    except DataError as error:
        return f"cannot be kept ({error})"
    models, _ = find_trained_models(folder, config)
    answering, _ = chosen_answer(folder, config, models, Wanted())
    if there.answering.to_json() != answering.to_json():
        return "answers otherwise than the run does by now"
    before, now = there.content["provenance"]["config"]["export"], to_values(config)["export"]
    changed = sorted(key for key in now if key != "formats" and now[key] != before.get(key))
    return f"was written with another {', '.join(f'export.{key}' for key in changed)}" if changed else ""


def print_exported(report: dict[str, Any], console: Console) -> None:
    """Print what was written, and what can be done with it."""
    out, count = shlex.quote(report["bundle"]), len(report["members"])
    worst = max(check["difference"] for check in report["checks"])
    lines = (
        f"{out}: {count} network{'s' * (count > 1)}, {report['megabytes']:.1f} MB; fused and unfused differ by at most "
        f"{worst:.1e} in a probability of {report['samples']} golden samples",
        f"Ask it: choral predict {out} IMAGE...",
        f"Check it: choral verify {out}",
        f"Read it: {out}/README.md",
    )
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def verify(path: Path, device: str, tolerance: float | None) -> Verified:
    """Read every byte of a bundle, and ask each form about the golden samples."""
    return verify_bundle(path, device, tolerance)


def print_verified(verified: Verified, console: Console) -> None:
    """Print how each form answers now."""
    table = Table(box=None, pad_edge=False)
    for heading in ("form", "largest difference", "decisions", ""):
        table.add_column(heading)
    for row in render(verified):
        table.add_row(*row)
    console.print(table)
    pixels = "as exported"
    if verified.pixels:
        pixels = f"NOT as exported, by up to {verified.pixels} levels of 255 (decoders of other versions may differ by a few)"
    console.print(f"{verified.samples} golden samples; pixels {pixels}; every checksum as written", highlight=False)


def exported_config(config: Config, golden: int | None) -> Config:
    """Return a config with another number of golden samples; None: as it is."""
    return config if golden is None else replace(config, export=replace(config.export, golden=golden))


def _say(progress: Console, text: str) -> None:
    progress.print(text, markup=False, highlight=False, soft_wrap=True)
