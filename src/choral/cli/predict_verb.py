"""The verb predict."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from choral.cli.consoles import stdout
from choral.cli.parser import Verbs
from choral.cli.workflow.prediction import predict_to_file, predicting
from choral.core.errors import ConfigError
from choral.deploy.bundle.predict_request import PredictRequest, add_predict_arguments, predict_request
from choral.inference.prediction_types import Prediction

_ROWS = 1000  # per table: its columns are as wide as the widest cell, so its rows are kept in memory
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def add_verbs(verbs: Verbs) -> None:
    """Add `predict`."""
    text = (
        "Predict images: class, labels or numbers, probabilities, and each member's vote; if the policy is calibrated,\n"
        "also the conformal set and whether the prediction is unsure. Memory does not grow with the number of images.\n\n"
        "  choral predict bundles/cells photos/ more.tar 'scans/**/*.tif' -o predictions.parquet\n"
        "  find photos -name '*.jpg' -mtime -1 | choral predict bundles/cells - --json\n"
        "  choral predict bundles/cells photos/ -o predictions.csv --processes 8\n\n"
        "An unreadable image is reported in its row (error), the others are predicted, and the exit status is 1. With\n"
        "--strict it ends the command, and nothing is written. URLs are refused: download the images first."
    )
    verb = verbs.add("predict", predict_verb, "choral predict elpv-demo photo.jpg another.png", text)
    add_predict_arguments(verb)
    verb.add_argument("--json", action="store_true", help="print one JSON object per line instead of a table")
    verb.add_argument(
        "--processes",
        type=int,
        default=1,
        metavar="N",
        help="processes that share the images; 0: one per GPU (default: 1); needs -o",
    )


def predict_verb(options: argparse.Namespace) -> int:
    """Predict images: files, directories, globs, tars, lists."""
    request = predict_request(options)
    if options.processes < 0:
        raise ConfigError(f"--processes {options.processes}: expected a whole number from 0")
    if request.out is None:
        if options.processes != 1:
            raise ConfigError(f"--processes {options.processes}: several processes need an output file: give -o FILE")
        return _print_json(request) if options.json else _print_tables(request)
    counts = predict_to_file(request, options.processes)
    if options.json:
        print(json.dumps({"out": str(request.out), "images": counts.images, "bad": counts.bad}))
    else:
        print(counts.summary(request.out), file=sys.stderr)
    return 1 if counts.bad else 0


def _print_json(request: PredictRequest) -> int:
    failed = False
    with predicting(request, show_progress=not stdout.is_terminal) as stream:
        for predictions in stream.batches:
            failed = failed or any(prediction.error for prediction in predictions)
            for prediction in predictions:
                print(json.dumps(prediction.content(), ensure_ascii=False), flush=True)
    return 1 if failed else 0


def _print_tables(request: PredictRequest) -> int:
    failed, held = False, list[Prediction]()
    with predicting(request, show_progress=True) as stream:
        for predictions in stream.batches:
            failed = failed or any(prediction.error for prediction in predictions)
            held += predictions
            if len(held) >= _ROWS:
                stream.progress.stop()
                _print_table(held)
                held = []
    if held:
        _print_table(held)
    return 1 if failed else 0


def _print_table(predictions: Sequence[Prediction]) -> None:
    parents = {Path(prediction.image).parent for prediction in predictions}
    # If all images lie in one directory, print it once and then file names only.
    shared = str(parents.pop()) if len(predictions) > 1 and len(parents) == 1 else ""
    table = Table(box=None, pad_edge=False)
    for heading in ("image", *predictions[0].headings):
        table.add_column(heading, overflow="fold")
    for prediction in predictions:
        image = _visible(Path(prediction.image).name if shared else prediction.image)
        if prediction.error:
            table.add_row(
                image, "[red]unreadable[/]", *[""] * (len(prediction.headings) - 2), _visible(prediction.error)
            )
        else:
            table.add_row(image, *map(_visible, prediction.cells()))
    if shared and shared != ".":
        stdout.print(f"images in {_visible(shared)}", highlight=False, soft_wrap=True)
    stdout.print(table)


def _visible(text: str) -> str:
    """Return text that is safe to print: a file name must not move the cursor or change the text direction."""
    return escape(_CONTROL.sub(lambda found: found.group().encode("unicode_escape").decode(), text))
