"""Verbs on data: pack, check, ls."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from choral.cli.parser import Verbs, stderr, stdout
from choral.data.packing.check import check
from choral.data.packing.options import TASKS, PackOptions
from choral.data.packing.pack import pack
from choral.data.shards.index import Dataset, Index

_NAMES_OF = {"multiclass": "classes", "multilabel": "labels", "regression": "target(s)"}


def add_data_verbs(verbs: Verbs) -> None:
    """Add pack, check and ls."""
    defaults = PackOptions()
    verb = verbs.add(
        "pack",
        pack_verb,
        "choral pack photos/ shards/ --val 0.1 --test 0.2",
        "Pack labelled images into WebDataset shards with an index.\n"
        "SOURCE: a folder of class folders; a .csv or .parquet manifest (columns image, label, and optionally split, group,\n"
        "and any others, which are kept); WebDataset tars or a folder of them (only indexed); torchvision:NAME; elpv.\n"
        "Killed and started again, it continues; the same input and seed give the same bytes.",
    )
    verb.add_argument("source", metavar="SOURCE")
    verb.add_argument("out", metavar="OUT", help="folder to write")
    verb.add_argument("--val", type=float, help="fraction of all samples for validation (default: 0.1)")
    verb.add_argument("--test", type=float, help="fraction of all samples for testing (default: 0.1; elpv: 0.25)")
    verb.add_argument("--seed", type=int, default=defaults.seed, help="of splits and order (default: %(default)s)")
    verb.add_argument(
        "--stratify", action="append", metavar="COLUMN", help="spread this column, too, evenly over the splits"
    )
    verb.add_argument(
        "--task",
        choices=TASKS,
        default=defaults.task,
        help="multilabel: labels separated by ; or | (default: %(default)s)",
    )
    verb.add_argument("--target", action="append", metavar="COLUMN", help="of numbers, to be predicted by regression")
    verb.add_argument("--image-column", default=defaults.image_column, help="of a manifest (default: %(default)s)")
    verb.add_argument(
        "--label-column",
        default=defaults.label_column,
        help="of a manifest (default: %(default)s); of another source, a column of its metadata that holds the classes",
    )
    verb.add_argument("--split-column", default=defaults.split_column, help="of a manifest (default: %(default)s)")
    verb.add_argument(
        "--group-column",
        default=defaults.group_column,
        help="samples of a group stay in one split (default: %(default)s)",
    )
    verb.add_argument("--max-size", type=int, metavar="PIXELS", help="shrink longer sides to this, and re-encode")
    verb.add_argument(
        "--quality",
        type=int,
        help="encode every image again as JPEG, 1 to 95 (default: 90, only where --max-size shrinks)",
    )
    verb.add_argument(
        "--samples-per-shard", type=int, default=defaults.samples_per_shard, help="at most (default: %(default)s)"
    )
    verb.add_argument("--processes", type=int, help="default: the cores of this machine")
    verb.add_argument("--root", help="where torchvision keeps its data")
    verb.add_argument("--force", action="store_true", help="replace what is in OUT")

    verb = verbs.add(
        "check", check_verb, "choral check shards/", "Verify shards against checksums and index, and open every image."
    )
    verb.add_argument("folder", metavar="DIR")
    verb = verbs.add("ls", ls_verb, "choral ls shards/", "Show classes, splits and sizes of a packed folder.")
    verb.add_argument("folder", metavar="DIR")
    verb.add_argument("--json", action="store_true", help="for machines")


def pack_verb(options: argparse.Namespace) -> int:
    """Write shards and their index."""
    pack_options = PackOptions(
        val=options.val,
        test=options.test,
        seed=options.seed,
        stratify=tuple(options.stratify or ()),
        image_column=options.image_column,
        label_column=options.label_column,
        split_column=options.split_column,
        group_column=options.group_column,
        task=options.task,
        targets=tuple(options.target or ()),
        max_size=options.max_size,
        quality=options.quality,
        samples_per_shard=options.samples_per_shard,
        processes=options.processes or PackOptions().processes,
        root=options.root,
        force=options.force,
    )
    with Progress(console=stderr, transient=True) as progress:
        task = progress.add_task("packing", total=None)
        dataset = pack(
            options.source,
            Path(options.out),
            pack_options,
            lambda done, total: progress.update(task, completed=done, total=total),
        )
    _print_dataset(dataset)
    return 0


def check_verb(options: argparse.Namespace) -> int:
    """Compare shards with their checksums and index, and open every image."""
    with Progress(console=stderr, transient=True) as progress:
        task = progress.add_task("checking", total=None)
        report = check(Path(options.folder), lambda done, total: progress.update(task, completed=done, total=total))
    for problem in report.problems:
        stdout.print(problem, markup=False, highlight=False, soft_wrap=True)
    state = f"{len(report.problems)} problems" if report.problems else "all as it should be"
    stderr.print(f"{report.samples} samples in {report.shards} shards: {state}")
    return 1 if report.problems else 0


def ls_verb(options: argparse.Namespace) -> int:
    """Show classes, splits and sizes of a packed folder."""
    dataset = Dataset.open(options.folder)
    if options.json:
        print(json.dumps(dataset.summary(), ensure_ascii=False))
    else:
        _print_dataset(dataset)
    return 0


def _print_dataset(dataset: Dataset) -> None:
    summary = dataset.summary()
    splits = list(summary["splits"].values())
    table = Table(
        title=escape(f"{summary['name']}: {len(dataset.classes)} {_NAMES_OF[dataset.task]} in {dataset.folder}"),
        title_justify="left",
    )
    table.add_column({"multiclass": "class", "multilabel": "label"}.get(dataset.task, "mean of target"))
    for name in summary["splits"]:
        table.add_column(name, justify="right")
    shown = dataset.classes[:50]
    for label in shown:
        if dataset.task == "regression":
            columns = [np.asarray(Index.open(dataset, name).column(label)) for name in summary["splits"]]
            table.add_row(escape(label), *(f"{column.mean():.5g} ± {column.std():.3g}" for column in columns))
        else:
            table.add_row(escape(label), *(f"{split['class_counts'][label]:,}" for split in splits))
    if len(shown) < len(dataset.classes):
        table.add_row(f"... {len(dataset.classes) - len(shown)} more", *("" for _ in summary["splits"]))
    table.add_section()
    table.add_row("samples", *(f"{split['samples']:,}" for split in splits))
    table.add_row("shards", *(f"{split['shards']:,}" for split in splits))
    table.add_row("MiB", *(f"{split['bytes'] / 2**20:,.1f}" for split in splits))
    stdout.print(table)
    for key in ("citation", "license"):
        if summary["source"].get(key):
            stdout.print(f"{key}: {summary['source'][key]}", markup=False, highlight=False)
