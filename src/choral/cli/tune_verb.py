"""`choral tune`: the search for better settings."""

from __future__ import annotations

import argparse
import json

from choral.cli.job_verbs import add_resources, resources_of
from choral.cli.parser import Verbs, stderr, stdout, with_config
from choral.cli.workflow.slurm_tuning import submit_search
from choral.cli.workflow.tuning import report_of, search_of, tune
from choral.config.files import load_config
from choral.core.errors import ConfigError
from choral.jobs.slurm.site import load_site
from choral.tuning.table import print_search


def add_tune_verb(verbs: Verbs) -> None:
    """Add tune."""
    verb = with_config(
        verbs.add(
            "tune",
            tune_verb,
            "choral tune configs/elpv-demo.yaml tune.trials=20 --jobs 2",
            "Search learning rate, weight decay, layer decay, drop rates and augmentation strength (or what tune.space\n"
            "names) by training one network again and again; what validates badly is ended early. Run it again to continue,\n"
            "also with more trials. Several processes, on machines that share the disk, work on one search.\n\n"
            "The best config is runs/NAME/tune/best.yaml:\n"
            "  choral run runs/elpv-demo/tune/best.yaml\n"
            "On a SLURM cluster, four jobs that share the trials (more at any time):\n"
            "  choral tune configs/elpv-demo.yaml --submit 4 --partition gpu --gpus 1 --time 4:00:00",
        )
    )
    verb.add_argument("--trials", type=int, help="in all (default: tune.trials)")
    verb.add_argument("--jobs", type=int, default=0, help="trials at once (default: as many as the devices hold)")
    verb.add_argument("--show", action="store_true", help="print what has been found so far, and start nothing")
    verb.add_argument("--submit", type=int, metavar="N", help="N jobs to SLURM, which work on the search, and end")
    add_resources(verb)
    verb.add_argument("--dry-run", action="store_true", help="with --submit: print script and command, and do nothing")
    verb.add_argument("--json", action="store_true", help="for machines, every trial")


def tune_verb(options: argparse.Namespace) -> int:
    """Search better settings: trials as jobs, ended early by validation."""
    further = [] if options.trials is None else [f"tune.trials={options.trials}"]
    config = load_config(options.config, [*options.overrides, *further])
    if options.submit is not None:
        site = load_site(options.site)
        submit_search(config, options.submit, resources_of(options), site, stdout, options.dry_run)
        return 0
    if not options.show and (code := tune(config, options.jobs, stderr)):
        return code
    search = search_of(config)
    if not search.is_begun:
        raise ConfigError(f"{search.root}: nothing has been searched yet; without --show it is")
    report = report_of(search, search.study())
    if options.json:
        print(json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False))
    else:
        print_search(report, stdout)
    return 0
