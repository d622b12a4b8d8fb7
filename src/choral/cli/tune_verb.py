"""The verb tune: hyperparameter search."""

from __future__ import annotations

import argparse
import json

from choral.cli.consoles import stderr, stdout
from choral.cli.job_verbs import add_resources, build_resources
from choral.cli.parser import Verbs, with_config
from choral.cli.workflow.slurm_tuning import submit_search
from choral.cli.workflow.tuning import build_search_report, prepare_search, tune
from choral.config.files import load_config
from choral.core.errors import ConfigError
from choral.jobs.slurm.site import load_site
from choral.tuning.report_table import print_search_report


def add_verbs(verbs: Verbs) -> None:
    """Add `tune`."""
    verb = with_config(
        verbs.add(
            "tune",
            tune_verb,
            "choral tune configs/elpv-demo.yaml tune.trials=20 --jobs 2",
            "Search learning rate, weight decay, layer decay, drop rates and augmentation strength, or the keys of\n"
            "tune.space, by training one model per trial; bad trials are pruned. Run it again to continue, also with more\n"
            "trials. Several processes, on machines that share the disk, can work on one search.\n\n"
            "The best config is runs/NAME/tune/best.yaml:\n"
            "  choral run runs/elpv-demo/tune/best.yaml\n"
            "On a SLURM cluster, with four jobs that share the trials:\n"
            "  choral tune configs/elpv-demo.yaml --submit 4 --partition gpu --gpus 1 --time 4:00:00",
        )
    )
    verb.add_argument("--trials", type=int, help="total number of trials (default: tune.trials)")
    verb.add_argument("--jobs", type=int, default=0, help="trials at once (default: as many as fit on the devices)")
    verb.add_argument("--show", action="store_true", help="print the results so far, and start nothing")
    verb.add_argument("--submit", type=int, metavar="N", help="submit N SLURM jobs that run trials, and exit")
    add_resources(verb)
    verb.add_argument(
        "--dry-run", action="store_true", help="with --submit: print script and command without submitting"
    )
    verb.add_argument("--json", action="store_true", help="print JSON with every trial")


def tune_verb(options: argparse.Namespace) -> int:
    """Search hyperparameters by trials as parallel jobs."""
    trials = [] if options.trials is None else [f"tune.trials={options.trials}"]
    config = load_config(options.config, [*options.overrides, *trials])
    if options.submit is not None:
        site = load_site(options.site)
        submit_search(config, options.submit, build_resources(options), site, stdout, options.dry_run)
        return 0
    if not options.show and (code := tune(config, options.jobs, stderr)):
        return code
    search = prepare_search(config)
    if not search.exists:
        raise ConfigError(f"{search.root}: no trial has been started yet; run `choral tune` without --show")
    report = build_search_report(search, search.study())
    if options.json:
        print(json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False))
    else:
        print_search_report(report, stdout)
    return 0
