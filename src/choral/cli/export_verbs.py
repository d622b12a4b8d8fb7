"""The verbs on bundles: export and verify."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

from choral.cli.consoles import stderr, stdout
from choral.cli.parser import Verbs
from choral.cli.workflow.bundle_forms import add_forms, check_forms, print_forms, print_split, verify_split
from choral.cli.workflow.export import (
    BUNDLE,
    export,
    export_for_hub,
    exported_config,
    print_exported,
    print_hub_folders,
    print_verified,
    verify,
)
from choral.config import Config
from choral.config.export import MAX_GOLDEN
from choral.config.fields import check
from choral.config.text import split_at_commas
from choral.core.errors import ConfigError
from choral.deploy.bundle.policy_choice import PolicyRequest
from choral.deploy.bundle.read import is_bundle
from choral.runs.run_dir import RunDir

_OF_FORMS = ("format", "precision", "data")


def add_verbs(verbs: Verbs) -> None:
    """Add `export` and `verify`."""
    verb = verbs.add(
        "export",
        export_verb,
        "choral export elpv-demo bundles/cells",
        "Write a bundle, one directory that predicts images: models with folded BatchNorm, combination, calibration and\n"
        "decision, a model card, golden samples and checksums. It uses the policy of `choral calibrate`; without one,\n"
        "calibration and sets are fitted on the validation split. Other rules, members and views:\n"
        "  choral export elpv-demo bundles/two --members first,third --rule weighted --views identity\n"
        "One unfolded model per directory, for timm and the Hugging Face Hub:\n"
        "  choral export elpv-demo --hub-folder cells-first --members first\n"
        "  hf upload YOU/cells-first cells-first\n"
        "The whole ensemble as one file, in a new or an existing bundle; the cost of lower precision is measured:\n"
        "  choral export bundles/cells --format onnx,pt2 --precision fp16,int8",
    )
    verb.add_argument(
        "target", metavar="RUN|BUNDLE", help="a run directory, the name of one, its config file; or a bundle"
    )
    verb.add_argument(
        "out", nargs="?", type=Path, metavar="OUT", help="the directory of the bundle (default: RUN/bundle)"
    )
    verb.add_argument("--members", default="", metavar="A,B", help="members to include (default: all)")
    verb.add_argument(
        "--rule",
        default="",
        help="combination rule, see `choral combine` (default: that of the calibrated run, else soft)",
    )
    verb.add_argument("--views", default="", metavar="A,B", help="test-time views (default: those of the evaluation)")
    verb.add_argument("--uncalibrated", action="store_true", help="raw probabilities, no sets")
    verb.add_argument(
        "--golden", type=int, metavar="N", help="golden samples from validation; 0: synthetic images (default: 8)"
    )
    verb.add_argument("--hub-folder", type=Path, metavar="DIR", help="write models for timm and the Hub instead")
    verb.add_argument("--format", default="", metavar="A,B", help="onnx, pt2: also export the ensemble as one file")
    verb.add_argument(
        "--precision", default="", metavar="A,B", help="fp16, int8: further ONNX files in lower precision"
    )
    verb.add_argument(
        "--data", default="", metavar="SHARDS", help="shards whose validation split measures lower precision"
    )
    verb.add_argument("--force", action="store_true", help="replace an existing bundle or directory")
    verb.add_argument("--json", action="store_true", help="print JSON")

    verb = verbs.add(
        "verify",
        verify_verb,
        "choral verify bundles/cells",
        "Verify every checksum of a bundle, and predict the golden samples with its models and exported files; or a whole\n"
        "split, compared with the models and predictions of its run if that exists:\n"
        "  choral verify bundles/cells --data data/elpv --split test",
    )
    verb.add_argument("bundle", type=Path, metavar="BUNDLE")
    verb.add_argument("--device", default="auto", help="device of the models (default: a GPU if there is one)")
    verb.add_argument("--split", default="", metavar="NAME", help="predict this whole split (default with --data: val)")
    verb.add_argument("--data", default="", metavar="SHARDS", help="shards with the split (default: those of the run)")
    verb.add_argument("--run", default="", metavar="RUN", help="the run to compare with (default: the run of its name)")
    verb.add_argument(
        "--tolerance", type=float, metavar="T", help="tolerance of probabilities (default: 1e-5, on a GPU 2e-3)"
    )
    verb.add_argument("--json", action="store_true", help="print JSON")


def export_verb(options: argparse.Namespace) -> int:
    """Write a bundle, models for timm and the Hub, or further exported files of a bundle."""
    formats, precisions = split_at_commas(options.format), split_at_commas(options.precision)
    if options.hub_folder is not None:
        _refuse(
            options, "out", "rule", "views", "uncalibrated", "golden", *_OF_FORMS, why="--hub-folder: writes models"
        )
        return _hub_folders(RunDir.find(options.target), options)
    check_forms(formats, precisions)
    if options.data and not precisions:
        raise ConfigError("--data: is only used to measure --precision; add --format onnx --precision fp16 or int8")
    if is_bundle(Path(options.target)):
        if not formats:
            raise ConfigError(f"{options.target}: is a bundle already; --format onnx,pt2 adds exported files")
        not_of_bundles = ("out", "members", "rule", "views", "uncalibrated", "golden", "force")
        _refuse(options, *not_of_bundles, why=f"{options.target}: is a bundle, which is extended in place")
        _add_forms(options, Path(options.target), {})
        return 0
    folder = RunDir.find(options.target)
    request = PolicyRequest(
        options.rule, tuple(split_at_commas(options.members)), options.views, not options.uncalibrated
    )
    out = options.out or folder.path / BUNDLE
    report = export(folder, _config(folder, options.golden), request, out, options.force, stderr)
    if not options.json:
        print_exported(report, stdout)
    if formats or options.json:
        _add_forms(options, out, report)
    return 0


def _refuse(options: argparse.Namespace, *names: str, why: str) -> None:
    """Raise ConfigError if one of these options was given."""
    given = [name for name in names if getattr(options, name) not in (None, "") and getattr(options, name) is not False]
    if given:
        names_given = ", ".join("OUT" if name == "out" else f"--{name}" for name in given)
        raise ConfigError(f"{why}: {names_given} cannot be combined with that")


def _hub_folders(folder: RunDir, options: argparse.Namespace) -> int:
    members = split_at_commas(options.members)
    places = export_for_hub(folder, members, options.hub_folder, options.force)
    if options.json:
        print(json.dumps({name: str(path) for name, path in places.items()}, ensure_ascii=False))
    else:
        print_hub_folders(places, stdout)
    return 0


def _add_forms(options: argparse.Namespace, bundle: Path, report: dict[str, Any]) -> None:
    """Add the requested exported files to a bundle, and report them; with --json, together with `report`."""
    formats, precisions = split_at_commas(options.format), split_at_commas(options.precision)
    forms = add_forms(bundle, formats, precisions, options.data, stderr) if formats else {}
    if options.json:
        print(json.dumps({**report, "forms": forms}, ensure_ascii=False))
    else:
        print_forms(bundle, forms, stdout)


def _config(folder: RunDir, golden: int | None) -> Config:
    check(golden is None or 0 <= golden <= MAX_GOLDEN, "--golden", f"expected 0 to {MAX_GOLDEN}")
    return exported_config(folder.config(), golden)


def verify_verb(options: argparse.Namespace) -> int:
    """Verify a bundle by its checksums and golden samples, or on a whole split."""
    tolerance = options.tolerance
    check(tolerance is None or 0 < tolerance < math.inf, "--tolerance", "expected a positive number, such as 1e-5")
    if options.split or options.data or options.run:
        return _verify_split(options)
    verified = verify(options.bundle, options.device, options.tolerance)
    if options.json:
        print(json.dumps(verified.to_json(), ensure_ascii=False))
    else:
        print_verified(verified, stdout)
    return 0 if verified.passed else 1


def _verify_split(options: argparse.Namespace) -> int:
    found = verify_split(
        options.bundle, options.split, options.data, options.run, options.device, options.tolerance, stderr
    )
    if options.json:
        print(json.dumps(found.to_json(), ensure_ascii=False))
    else:
        print_split(found, stdout)
    return 0 if found.passed else 1
