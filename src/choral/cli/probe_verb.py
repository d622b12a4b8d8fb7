"""The verb that asks a run about changed images: probe."""

from __future__ import annotations

import argparse
import json

from choral.analysis.probes.families import FAMILIES
from choral.analysis.probes.request import add_arguments, request_of
from choral.cli import workflow
from choral.cli.parser import Verbs, stdout


def add_probe_verb(verbs: Verbs) -> None:
    """Add probe."""
    names = [family.name for family in FAMILIES]
    text = (
        "Change the images of a split, family by family and strength by strength, ask the trained members about them\n"
        "(their mean, without test-time views), and print how much worse they answer. Strengths are in the unit of the\n"
        "key of augment that shows the same in training. Stopped or killed, the same command goes on, on any number of\n"
        "processes; a finished one prints what is there. The curves stand in the page of `choral analyze`, too.\n\n"
        f"families: {', '.join(names[:10])},\n  {', '.join(names[10:])}\n\n"
        "  choral probe elpv-demo --families rotation,blur --json\n"
        "  choral probe elpv-demo analyze.probe_samples=300        a part of the samples, for a first look"
    )
    verb = verbs.add("probe", probe_verb, "choral probe elpv-demo", text)
    add_arguments(verb)
    verb.add_argument(
        "--processes", type=int, default=0, help="ranks (default: all GPUs; without any, up to four cores)"
    )
    verb.add_argument("--json", action="store_true", help="for machines")


def probe_verb(options: argparse.Namespace) -> int:
    """Change images on purpose: what makes the answers worse, and by how much."""
    request = request_of(options)
    code = workflow.probe(request, options.processes)
    if code:
        return code
    curves = workflow.probed_curves(request.folder, request.split, request.families)
    if options.json:
        print(json.dumps(curves.to_json(), indent=1, ensure_ascii=False, allow_nan=False))
    else:
        workflow.print_curves(request.folder, curves, stdout)
    return 0
