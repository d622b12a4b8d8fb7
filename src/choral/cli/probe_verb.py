"""The verb `probe`: how much a run's metric drops on perturbed images."""

from __future__ import annotations

import argparse
import json

from choral.analysis.probes.families import FAMILIES
from choral.analysis.probes.request import add_arguments, parse_request
from choral.cli.consoles import stdout
from choral.cli.parser import Verbs
from choral.cli.workflow.probes import print_curves, probe, read_probe_curves


def add_verbs(verbs: Verbs) -> None:
    """Add probe."""
    names = [family.name for family in FAMILIES]
    text = (
        "Perturb the images of a split, family by family and strength by strength, predict them with the trained members\n"
        "(their mean, without test-time views), and print how much the metric drops. Strengths are in the unit of the\n"
        "augment key that applies the same in training. After a stop, the same command continues, with any number of\n"
        "processes. The curves also appear on the page of `choral analyze`.\n\n"
        f"families: {', '.join(names[:10])},\n  {', '.join(names[10:])}\n\n"
        "  choral probe elpv-demo --families rotation,blur --json\n"
        "  choral probe elpv-demo analyze.probe_samples=300        probe only some samples"
    )
    verb = verbs.add("probe", probe_verb, "choral probe elpv-demo", text)
    add_arguments(verb)
    verb.add_argument(
        "--processes", type=int, default=0, help="ranks (default: all GPUs; without any, up to four cores)"
    )
    verb.add_argument("--json", action="store_true", help="print the curves as JSON")


def probe_verb(options: argparse.Namespace) -> int:
    """Measure how much the metric drops on perturbed images."""
    request = parse_request(options)
    code = probe(request, options.processes)
    if code:
        return code
    curves = read_probe_curves(request.folder, request.split, request.families)
    if options.json:
        print(json.dumps(curves.to_json(), indent=1, ensure_ascii=False, allow_nan=False))
    else:
        print_curves(request.folder, curves, stdout)
    return 0
