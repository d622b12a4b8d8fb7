"""The verbs on data: pack, check, ls."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from choral.cli.consoles import stderr, stdout
from choral.cli.parser import Verbs
from choral.data.packing.check import check_dataset
from choral.data.packing.options import TASKS, PackOptions
from choral.data.packing.pack import pack
from choral.data.shards.index import Dataset, Index

_NOUNS = {"multiclass": "classes", "multilabel": "labels", "regression": "target(s)"}


def add_verbs(verbs: Verbs) -> None:
    """Add `pack`, `check` and `ls`."""
    defaults = PackOptions()
    verb = verbs.add(
        "pack",
        pack_verb,
        "choral pack photos/ shards/ --val 0.1 --test 0.2",
        "Pack labelled images into WebDataset shards with an index.\n"
        "SOURCE: a directory with one subdirectory per class; a .csv or .parquet manifest with the columns image and label,\n"
        "optionally split and group, and any others, which are kept; WebDataset tars or a directory of them, which are\n"
        "indexed in place; torchvision:NAME; or elpv. A killed command continues when it is run again. The same input and\n"
        "seed give the same bytes.",
    )
    verb.add_argument("source", metavar="SOURCE")
    verb.add_argument("out", metavar="OUT", help="directory to write")
    verb.add_argument("--val", type=float, help="fraction of all samples for validation (default: 0.1)")
    verb.add_argument("--test", type=float, help="fraction of all samples for testing (default: 0.1; elpv: 0.25)")
    verb.add_argument("--seed", type=int, default=defaults.seed, help="seed of splits and order (default: %(default)s)")
    verb.add_argument(
        "--stratify",
        action="append",
        metavar="COLUMN",
        help="also spread the values of this column evenly over the splits",
    )
    verb.add_argument(
        "--task",
        choices=TASKS,
        default=defaults.task,
        help="multilabel: labels separated by ; or | (default: %(default)s)",
    )
    verb.add_argument(
        "--target", action="append", metavar="COLUMN", help="a column of numbers to predict by regression"
    )
    verb.add_argument(
        "--image-column", default=defaults.image_column, help="column of a manifest (default: %(default)s)"
    )
    verb.add_argument(
        "--label-column",
        default=defaults.label_column,
        help="column of a manifest, or of another source's metadata, that holds the classes (default: %(default)s)",
    )
    verb.add_argument(
        "--split-column", default=defaults.split_column, help="column of a manifest (default: %(default)s)"
    )
    verb.add_argument(
        "--group-column",
        default=defaults.group_column,
        help="column of a manifest; samples of one group stay in one split (default: %(default)s)",
    )
    verb.add_argument(
        "--max-size",
        type=int,
        metavar="PIXELS",
        help="downscale images whose longer side exceeds this, and re-encode them",
    )
    verb.add_argument(
        "--quality",
        type=int,
        help="re-encode every image as JPEG, 1 to 95 (default: 90, only for images that --max-size downscales)",
    )
    verb.add_argument(
        "--samples-per-shard", type=int, default=defaults.samples_per_shard, help="maximum (default: %(default)s)"
    )
    verb.add_argument("--processes", type=int, help="worker processes (default: the cores of this machine)")
    verb.add_argument("--root", help="directory of torchvision's downloads")
    verb.add_argument("--force", action="store_true", help="replace the contents of OUT")

    verb = verbs.add(
        "check",
        check_verb,
        "choral check shards/",
        "Verify shards against checksums and index, and decode every image.",
    )
    verb.add_argument("folder", metavar="DIR")
    verb = verbs.add("ls", ls_verb, "choral ls shards/", "Show classes, splits and sizes of packed shards.")
    verb.add_argument("folder", metavar="DIR")
    verb.add_argument("--json", action="store_true", help="print JSON")


def pack_verb(options: argparse.Namespace) -> int:
    """Pack a source into shards with an index."""
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
    """Verify shards against checksums and index, and decode every image."""
    with Progress(console=stderr, transient=True) as progress:
        task = progress.add_task("checking", total=None)
        report = check_dataset(
            Path(options.folder), lambda done, total: progress.update(task, completed=done, total=total)
        )
    for problem in report.problems:
        stdout.print(problem, markup=False, highlight=False, soft_wrap=True)
    state = f"{len(report.problems)} problems" if report.problems else "no problems"
    stderr.print(f"{report.samples} samples in {report.shards} shards: {state}")
    return 1 if report.problems else 0


def ls_verb(options: argparse.Namespace) -> int:
    """Show classes, splits and sizes of packed shards."""
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
        title=escape(f"{summary['name']}: {len(dataset.classes)} {_NOUNS[dataset.task]} in {dataset.folder}"),
        title_justify="left",
    )
    table.add_column({"multiclass": "class", "multilabel": "label"}.get(dataset.task, "mean of target"))
    for name in summary["splits"]:
        table.add_column(name, justify="right")
    first_classes = dataset.classes[:50]
    for label in first_classes:
        if dataset.task == "regression":
            columns = [np.asarray(Index.open(dataset, name).column(label)) for name in summary["splits"]]
            table.add_row(escape(label), *(f"{column.mean():.5g} ± {column.std():.3g}" for column in columns))
        else:
            table.add_row(escape(label), *(f"{split['class_counts'][label]:,}" for split in splits))
    if len(first_classes) < len(dataset.classes):
        table.add_row(f"... {len(dataset.classes) - len(first_classes)} more", *("" for _ in summary["splits"]))
    table.add_section()
    table.add_row("samples", *(f"{split['samples']:,}" for split in splits))
    table.add_row("shards", *(f"{split['shards']:,}" for split in splits))
    table.add_row("MiB", *(f"{split['bytes'] / 2**20:,.1f}" for split in splits))
    stdout.print(table)
    for key in ("citation", "licence"):
        if summary["source"].get(key):
            stdout.print(f"{key}: {summary['source'][key]}", markup=False, highlight=False)
