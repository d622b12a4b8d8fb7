"""`choral VERB TARGET [key=value ...]`: one verb, one function. Results go to stdout, everything else to stderr.

Exit status: 0 done, 1 failed, 2 wrong usage, 75 stopped (run the same command again). What needs torch is imported by the
verbs that need it, so that the others start at once.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from choral import __version__, workflow
from choral.configfile import load_config, to_yaml
from choral.errors import ChoralError, ConfigError, did_you_mean
from choral.runfolder import RunFolder
from choral.shards.check import check
from choral.shards.index import Dataset, Index
from choral.shards.options import TASKS, PackOptions
from choral.shards.pack import pack

Verb = Callable[[argparse.Namespace], int]
_NAMES_OF = {"multiclass": "classes", "multilabel": "labels", "regression": "target(s)"}
_stdout, _stderr = Console(), Console(stderr=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit status."""
    try:
        options = _parse(sys.argv[1:] if arguments is None else arguments)
        verb: Verb = options.verb
        return verb(options)
    except ChoralError as error:
        _stderr.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        return error.exit_code
    except KeyboardInterrupt:
        _stderr.print("interrupted; run the same command again to continue")
        return 75
    except BrokenPipeError:  # `choral ls DIR | head`
        sys.stderr.close()
        return 1


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
    with Progress(console=_stderr, transient=True) as progress:
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
    with Progress(console=_stderr, transient=True) as progress:
        task = progress.add_task("checking", total=None)
        report = check(Path(options.folder), lambda done, total: progress.update(task, completed=done, total=total))
    for problem in report.problems:
        _stdout.print(problem, markup=False, highlight=False, soft_wrap=True)
    state = f"{len(report.problems)} problems" if report.problems else "all as it should be"
    _stderr.print(f"{report.samples} samples in {report.shards} shards: {state}")
    return 1 if report.problems else 0


def ls_verb(options: argparse.Namespace) -> int:
    """Show classes, splits and sizes of a packed folder."""
    dataset = Dataset.open(options.folder)
    if options.json:
        print(json.dumps(dataset.summary(), ensure_ascii=False))
    else:
        _print_dataset(dataset)
    return 0


def config_verb(options: argparse.Namespace) -> int:
    """Print the resolved config."""
    sys.stdout.write(to_yaml(load_config(options.config, options.overrides)))
    return 0


def show_verb(options: argparse.Namespace) -> int:
    """Draw a contact sheet of augmented training samples."""
    from choral.show import contact_sheet

    config = load_config(options.config, options.overrides)
    print(contact_sheet(config, options.out, options.samples, options.epochs))
    return 0


def train_verb(options: argparse.Namespace) -> int:
    """Train one network through Accelerate's launcher."""
    config = load_config(options.config, options.overrides)
    folder = RunFolder(options.folder) if options.folder else RunFolder.of(config)
    return workflow.train_one(config, folder, [options.config, *options.overrides], options.processes)


def ensemble_verb(options: argparse.Namespace) -> int:
    """Train the members of an ensemble as parallel jobs."""
    config = load_config(options.config, options.overrides)
    return workflow.train_all(config, RunFolder.of(config), _stderr)


def evaluate_verb(options: argparse.Namespace) -> int:
    """Write the ledger of a run."""
    folder = RunFolder.find(options.run)
    return workflow.evaluate(folder, options.overrides, options.processes, options.force)


def score_verb(options: argparse.Namespace) -> int:
    """Print members and votes with intervals."""
    folder = RunFolder.find(options.run)
    scores = workflow.score(folder, options.split)
    if options.json:
        print(workflow.scores_as_json(scores))
    else:
        workflow.print_scores(scores, _stdout)
    return 0


def predict_verb(options: argparse.Namespace) -> int:
    """Answer for image files."""
    folder = RunFolder.find(options.run)
    failed = 0
    table = Table(box=None, pad_edge=False)
    for answer in workflow.predict(folder, options.images):
        failed += bool(answer.error)
        if not table.columns:
            for heading in ("image", *answer.headings):
                table.add_column(heading)
        if options.json:
            print(json.dumps(asdict(answer), ensure_ascii=False), flush=True)
        elif answer.error:
            empty = [""] * (len(answer.headings) - 2)
            table.add_row(escape(answer.image), "[red]not read[/]", *empty, escape(answer.error))
        else:
            table.add_row(escape(answer.image), *map(escape, answer.cells()))
    if not options.json:
        _stdout.print(table)
    return 1 if failed else 0


def run_verb(options: argparse.Namespace) -> int:
    """Pack, train, evaluate, score: whatever is not done yet."""
    config = load_config(options.config, options.overrides)
    return workflow.run_all(config, _stderr, _stdout)


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
    _stdout.print(table)
    for key in ("citation", "license"):
        if summary["source"].get(key):
            _stdout.print(f"{key}: {summary['source'][key]}", markup=False, highlight=False)


class _Parser(argparse.ArgumentParser):
    """Help that opens with a working example, and one line for a wrong usage."""

    def error(self, message: str) -> None:  # type: ignore[override]
        self.exit(2, f"error: {message}\nSee {self.prog} --help\n")

    def format_help(self) -> str:
        """Return the help with the example first; argparse would open with the usage."""
        formatter = self._get_formatter()
        formatter.add_text(self.description)
        formatter.add_usage(self.usage, self._actions, self._mutually_exclusive_groups)
        for group in self._action_groups:
            formatter.start_section(group.title)
            formatter.add_arguments(group._group_actions)
            formatter.end_section()
        return formatter.format_help()


_HELP = """Example, on a folder with one subfolder of images a class:
  choral pack photos/ shards/
  choral run configs/default.yaml data.shards=shards/

Fine-tune pretrained image models, train ensembles as parallel jobs, and know how sure they are.

usage: choral VERB TARGET [key=value ...]

verbs:
{verbs}

`choral VERB --help` tells more, `choral --version` which choral this is.
Exit status: 0 done, 1 failed, 2 wrong usage, 75 stopped: run the same command again."""


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read a command line; each verb has a parser of its own, so that options may stand before, between and after words."""
    verbs = _verbs()
    first = arguments[0] if arguments else "--help"
    if first in ("-h", "--help"):
        width = max(map(len, verbs))
        print(_HELP.format(verbs="\n".join(f"  {name:{width}}  {parser.epilog}" for name, parser in verbs.items())))
        raise SystemExit(0 if arguments else 2)
    if first == "--version":
        print(f"choral {__version__}")
        raise SystemExit(0)
    if first not in verbs:
        raise ConfigError(f"'{first}' is no verb.{did_you_mean(first, verbs)} See choral --help")
    return verbs[first].parse_intermixed_args(list(arguments[1:]))


def _verbs() -> dict[str, argparse.ArgumentParser]:
    """Return the parser of each verb; its epilog is the verb in one line."""
    parsers: dict[str, argparse.ArgumentParser] = {}

    def add(name: str, function: Verb, example: str, text: str) -> argparse.ArgumentParser:
        verb = parsers[name] = _Parser(
            prog=f"choral {name}",
            description=f"Example:\n  {example}\n\n{text}",
            epilog=(function.__doc__ or "").strip(),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        verb.set_defaults(verb=function)
        return verb

    _add_data_verbs(add)
    _add_run_verbs(add)
    return parsers


def _add_data_verbs(add: Callable[[str, Verb, str, str], argparse.ArgumentParser]) -> None:
    defaults = PackOptions()
    verb = add(
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
    verb.add_argument("--label-column", default=defaults.label_column, help="of a manifest (default: %(default)s)")
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

    verb = add(
        "check", check_verb, "choral check shards/", "Verify shards against checksums and index, and open every image."
    )
    verb.add_argument("folder", metavar="DIR")
    verb = add("ls", ls_verb, "choral ls shards/", "Show classes, splits and sizes of a packed folder.")
    verb.add_argument("folder", metavar="DIR")
    verb.add_argument("--json", action="store_true", help="for machines")


def _add_run_verbs(add: Callable[[str, Verb, str, str], argparse.ArgumentParser]) -> None:
    def with_config(verb: argparse.ArgumentParser) -> argparse.ArgumentParser:
        verb.add_argument("config", metavar="CONFIG", help="a YAML file")
        verb.add_argument("overrides", nargs="*", metavar="key=value", help="such as train.lr=3e-4; the last word")
        return verb

    def with_run(verb: argparse.ArgumentParser) -> argparse.ArgumentParser:
        verb.add_argument("run", metavar="RUN", help="a run folder, the name of one under runs/, or its config file")
        return verb

    example = "choral config configs/default.yaml data.shards=shards/ train.lr=3e-4"
    with_config(
        add("config", config_verb, example, "Print the resolved config: defaults, base files, file and overrides.")
    )

    verb = add(
        "show",
        show_verb,
        "choral show configs/elpv-demo.yaml augment.preset=heavy --out heavy.png",
        "Draw a contact sheet: training samples as evaluation sees them, and as training does in its first epochs.\n"
        "Takes seconds, without a GPU and without a network; the data must be packed.",
    )
    with_config(verb)
    verb.add_argument("--out", type=Path, metavar="FILE", help=".png or .jpg (default: show-RUN.png)")
    verb.add_argument("--samples", type=int, default=6, help="rows (default: %(default)s)")
    verb.add_argument("--epochs", type=int, default=5, help="augmented images a sample (default: %(default)s)")

    verb = add(
        "train",
        train_verb,
        "choral train configs/default.yaml data.shards=shards/ --processes 2",
        "Train one network through Accelerate's launcher, or continue it. On a GPU machine a process is a GPU.",
    )
    with_config(verb)
    verb.add_argument("--processes", type=int, default=0, help="ranks (default: all GPUs; 1 without any)")
    verb.add_argument("--folder", type=Path, help="the run folder, instead of runs/NAME")

    example = "choral ensemble configs/elpv-demo.yaml"
    with_config(
        add("ensemble", ensemble_verb, example, "Train the members of an ensemble as parallel jobs on this machine.")
    )

    verb = add(
        "evaluate",
        evaluate_verb,
        "choral evaluate elpv-demo evaluate.views=d4",
        "Ask the trained members about the configured splits, under every view, and write the prediction ledger.",
    )
    with_run(verb)
    verb.add_argument("overrides", nargs="*", metavar="key=value", help="of the evaluate section, and data.shards")
    verb.add_argument(
        "--processes", type=int, default=0, help="ranks (default: all GPUs; without any, up to four cores)"
    )
    verb.add_argument("--force", action="store_true", help="evaluate again what is there")

    text = "Print members, soft and hard vote, without and with test-time views, each with a 95 % interval. No forward pass."
    verb = with_run(add("score", score_verb, "choral score elpv-demo --json", text))
    verb.add_argument("--split", help="default: the first that the config evaluates")
    verb.add_argument("--json", action="store_true", help="for machines")

    text = (
        "Answer for image files: class, labels or numbers, and each member's vote. Files that cannot be read are named."
    )
    verb = with_run(add("predict", predict_verb, "choral predict elpv-demo photo.jpg another.png", text))
    verb.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    verb.add_argument("--json", action="store_true", help="one JSON object a line")

    text = "Pack, train all members, evaluate and score: whatever is not done yet. Run it again to continue."
    with_config(add("run", run_verb, "choral run configs/elpv-demo.yaml", text))


if __name__ == "__main__":
    sys.exit(main())
