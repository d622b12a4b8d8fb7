"""The verb that answers for images: predict."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from choral.cli import workflow
from choral.cli.parser import Verbs, stdout
from choral.core.errors import ConfigError
from choral.deploy.bundle.predict_request import PredictRequest, add_predict_arguments, predict_request
from choral.inference.prediction_types import Answer

_ROWS = 1000  # of a table: its columns are as wide as the widest cell, so that it has to be held
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def add_predict_verb(verbs: Verbs) -> None:
    """Add the verb."""
    text = (
        "Answer for images: class, labels or numbers, how probable, and each member's vote; where the answers are\n"
        "calibrated, the conformal set and whether it is unsure, too. The order is kept, and memory does not grow with\n"
        "their number.\n\n"
        "  choral predict bundles/cells photos/ more.tar 'scans/**/*.tif' -o answers.parquet\n"
        "  find photos -name '*.jpg' -mtime -1 | choral predict bundles/cells - --json\n"
        "  choral predict bundles/cells photos/ -o answers.csv --processes 8\n\n"
        "An image that cannot be read is reported in its row (error); the others are answered for, and the exit status is\n"
        "1. With --strict it ends the work, and nothing is written. Addresses are refused: download first."
    )
    verb = verbs.add("predict", predict_verb, "choral predict elpv-demo photo.jpg another.png", text)
    add_predict_arguments(verb)
    verb.add_argument("--json", action="store_true", help="one JSON object a line, instead of a table")
    verb.add_argument(
        "--processes",
        type=int,
        default=1,
        metavar="N",
        help="that share the images; 0: one a GPU (default: 1); with -o",
    )


def predict_verb(options: argparse.Namespace) -> int:
    """Answer for images: files, folders, globs, tars, lists."""
    request = predict_request(options)
    if options.processes < 0:
        raise ConfigError(f"--processes {options.processes}: expected a whole number from 0")
    if request.out is None:
        if options.processes != 1:
            raise ConfigError(f"--processes {options.processes}: several processes write a file: give -o FILE")
        return _print_json(request) if options.json else _print_tables(request)
    tally = workflow.predict_to_file(request, options.processes)
    if options.json:
        print(json.dumps({"out": str(request.out), "images": tally.images, "bad": tally.bad}))
    else:
        print(tally.said(request.out), file=sys.stderr)
    return 1 if tally.bad else 0


def _print_json(request: PredictRequest) -> int:
    failed = False
    with workflow.predicting(request, shown=not stdout.is_terminal) as asked:
        for answers in asked.answers:
            failed = failed or any(answer.error for answer in answers)
            for answer in answers:
                print(json.dumps(answer.content(), ensure_ascii=False), flush=True)
    return 1 if failed else 0


def _print_tables(request: PredictRequest) -> int:
    failed, held = False, list[Answer]()
    with workflow.predicting(request, shown=True) as asked:
        for answers in asked.answers:
            failed = failed or any(answer.error for answer in answers)
            held += answers
            if len(held) >= _ROWS:
                asked.progress.stop()
                _print_table(held)
                held = []
    if held:
        _print_table(held)
    return 1 if failed else 0


def _print_table(answers: Sequence[Answer]) -> None:
    parents = {Path(answer.image).parent for answer in answers}
    # Paths are long, and ends tell images apart: names alone, where all lie in one folder.
    shared = str(parents.pop()) if len(answers) > 1 and len(parents) == 1 else ""
    table = Table(box=None, pad_edge=False)
    for heading in ("image", *answers[0].headings):
        table.add_column(heading, overflow="fold")
    for answer in answers:
        image = _visible(Path(answer.image).name if shared else answer.image)
        if answer.error:
            table.add_row(image, "[red]not read[/]", *[""] * (len(answer.headings) - 2), _visible(answer.error))
        else:
            table.add_row(image, *map(_visible, answer.cells()))
    if shared and shared != ".":
        stdout.print(f"images in {_visible(shared)}", highlight=False, soft_wrap=True)
    stdout.print(table)


def _visible(text: str) -> str:
    """Return text as a terminal may show it: a file name must not move the cursor or turn the order of letters."""
    return escape(_CONTROL.sub(lambda found: found.group().encode("unicode_escape").decode(), text))
