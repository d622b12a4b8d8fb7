"""Verbs on bundles: export, verify."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

from choral.cli import workflow
from choral.cli.parser import Verbs, stderr, stdout
from choral.config import Config
from choral.config.export import MOST_GOLDEN
from choral.config.fields import check, split_at_commas
from choral.core.errors import ConfigError
from choral.deploy.bundle.policy_choice import Wanted
from choral.deploy.bundle.read import is_bundle
from choral.runs.run_dir import RunDir

_OF_FORMS = ("format", "precision", "data")


def add_export_verbs(verbs: Verbs) -> None:
    """Add export and verify."""
    verb = verbs.add(
        "export",
        export_verb,
        "choral export elpv-demo bundles/cells",
        "Write one folder that answers for an image: fused networks, how they are heard, calibrated and decided, a model\n"
        "card, golden samples, checksums. It answers as the run does since `choral calibrate`; without that, calibration\n"
        "and sets are fitted on the validation split. Other rules, members and views:\n"
        "  choral export elpv-demo bundles/two --members first,third --rule weighted --views identity\n"
        "A network alone, not fused, as timm and the Hugging Face Hub take it (several: a folder each):\n"
        "  choral export elpv-demo --hub-folder cells-first --members first\n"
        "  hf upload YOU/cells-first cells-first\n"
        "The whole ensemble as one file, in a new bundle or one that is there; what lower precision costs is measured:\n"
        "  choral export bundles/cells --format onnx,pt2 --precision fp16,int8",
    )
    verb.add_argument(
        "target", metavar="RUN|BUNDLE", help="a run folder, the name of one, its config file; or a bundle"
    )
    verb.add_argument("out", nargs="?", type=Path, metavar="OUT", help="the folder of the bundle (default: RUN/bundle)")
    verb.add_argument("--members", default="", metavar="A,B", help="that are heard (default: all)")
    verb.add_argument("--rule", default="", help="as of `choral combine` (default: as the run answers, else soft)")
    verb.add_argument("--views", default="", metavar="A,B", help="as of the evaluation (default: those of it)")
    verb.add_argument("--uncalibrated", action="store_true", help="probabilities as the networks give them, no sets")
    verb.add_argument("--golden", type=int, metavar="N", help="validation images in it; 0: made ones (default: 8)")
    verb.add_argument("--hub-folder", type=Path, metavar="DIR", help="write networks for timm and the Hub instead")
    verb.add_argument("--format", default="", metavar="A,B", help="onnx, pt2: the ensemble as one file, too")
    verb.add_argument("--precision", default="", metavar="A,B", help="fp16, int8: further ONNX files")
    verb.add_argument("--data", default="", metavar="SHARDS", help="whose validation split they are measured on")
    verb.add_argument("--force", action="store_true", help="replace a bundle, or a folder for the Hub, that is there")
    verb.add_argument("--json", action="store_true", help="for machines")

    verb = verbs.add(
        "verify",
        verify_verb,
        "choral verify bundles/cells",
        "Compute every checksum of a bundle again, and ask each of its forms about the golden samples; or about all of a\n"
        "split, beside the networks and the ledger of the run that it comes from, where that is there:\n"
        "  choral verify bundles/cells --data data/elpv --split test",
    )
    verb.add_argument("bundle", type=Path, metavar="BUNDLE")
    verb.add_argument("--device", default="auto", help="of the networks (default: a GPU where there is one)")
    verb.add_argument("--split", default="", metavar="NAME", help="ask about all of it (with --data default: val)")
    verb.add_argument("--data", default="", metavar="SHARDS", help="with the split (default: where the run had them)")
    verb.add_argument("--run", default="", metavar="RUN", help="that it comes from (default: one of its name)")
    verb.add_argument("--tolerance", type=float, metavar="T", help="of probabilities (default: 1e-5, on a GPU 2e-3)")
    verb.add_argument("--json", action="store_true", help="for machines")


def export_verb(options: argparse.Namespace) -> int:
    """Write a bundle that answers for an image, or networks for timm and the Hub, or further forms of a bundle."""
    formats, precisions = split_at_commas(options.format), split_at_commas(options.precision)
    if options.hub_folder is not None:
        _refuse(
            options, "out", "rule", "views", "uncalibrated", "golden", *_OF_FORMS, why="--hub-folder: writes networks"
        )
        return _hub_folders(RunDir.find(options.target), options)
    workflow.check_forms(formats, precisions)
    if options.data and not precisions:
        raise ConfigError("--data: is where --precision is measured; add --format onnx --precision fp16 or int8")
    if is_bundle(Path(options.target)):
        if not formats:
            raise ConfigError(f"{options.target}: is a bundle already; --format onnx,pt2 gives it further forms")
        not_of_bundles = ("out", "members", "rule", "views", "uncalibrated", "golden", "force")
        _refuse(options, *not_of_bundles, why=f"{options.target}: is a bundle, which is given forms where it is")
        _add_forms(options, Path(options.target), {})
        return 0
    folder = RunDir.find(options.target)
    wanted = Wanted(options.rule, tuple(split_at_commas(options.members)), options.views, not options.uncalibrated)
    out = options.out or folder.path / workflow.BUNDLE
    report = workflow.export(folder, _config(folder, options.golden), wanted, out, options.force, stderr)
    if not options.json:
        workflow.print_exported(report, stdout)
    if formats or options.json:
        _add_forms(options, out, report)
    return 0


def _refuse(options: argparse.Namespace, *names: str, why: str) -> None:
    """Raise ConfigError where one of these options was given."""
    given = [name for name in names if getattr(options, name) not in (None, "") and getattr(options, name) is not False]
    if given:
        words = ", ".join("OUT" if name == "out" else f"--{name}" for name in given)
        raise ConfigError(f"{why}: {words} {'do' if len(given) > 1 else 'does'} not go with that")


def _hub_folders(folder: RunDir, options: argparse.Namespace) -> int:
    members = split_at_commas(options.members)
    places = workflow.export_for_hub(folder, members, options.hub_folder, options.force)
    if options.json:
        print(json.dumps({name: str(path) for name, path in places.items()}, ensure_ascii=False))
    else:
        workflow.print_hub_folders(places, stdout)
    return 0


def _add_forms(options: argparse.Namespace, bundle: Path, report: dict[str, Any]) -> None:
    """Give a bundle the forms that are asked for, and say what they are, with --json behind what was reported before."""
    formats, precisions = split_at_commas(options.format), split_at_commas(options.precision)
    forms = workflow.add_forms(bundle, formats, precisions, options.data, stderr) if formats else {}
    if options.json:
        print(json.dumps({**report, "forms": forms}, ensure_ascii=False))
    else:
        workflow.print_forms(bundle, forms, stdout)


def _config(folder: RunDir, golden: int | None) -> Config:
    check(golden is None or 0 <= golden <= MOST_GOLDEN, "--golden", f"expected 0 to {MOST_GOLDEN}")
    return workflow.exported_config(folder.config(), golden)


def verify_verb(options: argparse.Namespace) -> int:
    """Check a bundle: checksums, and golden samples, or a whole split, in every form."""
    tolerance = options.tolerance
    check(tolerance is None or 0 < tolerance < math.inf, "--tolerance", "expected a positive number, such as 1e-5")
    if options.split or options.data or options.run:
        return _verify_split(options)
    verified = workflow.verify(options.bundle, options.device, options.tolerance)
    if options.json:
        print(json.dumps(verified.to_json(), ensure_ascii=False))
    else:
        workflow.print_verified(verified, stdout)
    return 0 if verified.passed else 1


def _verify_split(options: argparse.Namespace) -> int:
    found = workflow.verify_split(
        options.bundle, options.split, options.data, options.run, options.device, options.tolerance, stderr
    )
    if options.json:
        print(json.dumps(found.to_json(), ensure_ascii=False))
    else:
        workflow.print_split(found, stdout)
    return 0 if found.passed else 1
