"""The steps of a run in order, each skipped where its result is there: pack, train the members, evaluate, score.

What a step left on disk is all that the next one knows of it, so a run can be killed anywhere and started again. torch is
imported only by the steps that compute.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import Progress

from choral.config import Config, members_of
from choral.ensemble import score as scoring
from choral.ensemble.absent import absent_from, absent_members, how_many
from choral.ensemble.combination import Asked, combine_run
from choral.ensemble.diversity_figure import draw_diversity
from choral.ensemble.diversity_table import render_diversity
from choral.ensemble.known import known_of
from choral.ensemble.members import member_config, pending_jobs, run_chain, run_members, slots_of
from choral.ensemble.table import render
from choral.errors import ChoralError, ConfigError, DataError, Stopped
from choral.files import sha256_of
from choral.inputs.sample_weights import rounds_of, why_not_trained
from choral.inputs.targets import Targets
from choral.jobs.launcher import Machines, launch_command, run_in_foreground
from choral.predict.__main__ import evaluation_config
from choral.predict.ledger import Ledger
from choral.predict.plan import plan_evaluation
from choral.predict.views import expand
from choral.predict.voices import member_folders, voices_of
from choral.runfolder import RunFolder, read_json, write_atomic, write_json
from choral.shards.index import DATASET_FILE, Dataset, Index
from choral.shards.options import PackOptions
from choral.shards.pack import pack
from choral.train.__main__ import preflight

if TYPE_CHECKING:
    from choral.predict.answers import Answer


_EARLIER_START_S = 120.0  # that what a failed node was doing, or the lock of it, may outlive the node


def run_all(config: Config, progress: Console, results: Console) -> int:
    """Do all steps that are not done yet, print the scores, and return the exit status."""
    started = time.monotonic()
    folder = RunFolder.of(config)
    folder.check_same(config)
    pack_if_missing(config, progress)
    status = train_all(config, folder, progress)
    if status:
        trained = any(member.result for member in member_folders(folder, config).values())
        if status == Stopped.exit_code or not trained:
            return status
    evaluated = evaluate(folder, [], processes=0, force=False)
    if evaluated:
        return evaluated
    print_scores(score(folder, None), folder, results)
    minutes, seconds = divmod(int(time.monotonic() - started), 60)
    results.print(
        f"Run folder: {folder.path}  (this call took {minutes} min {seconds} s)", markup=False, highlight=False
    )
    results.print(f"Ask it: choral predict {folder.name} IMAGE...", markup=False, highlight=False)
    return status


def pack_if_missing(config: Config, console: Console) -> None:
    """Pack `data.source` into `data.shards`, unless that is done; an interrupted packing is continued.

    Raises:
        ConfigError: there are neither shards nor a source.
    """
    shards = Path(config.data.shards)
    if not config.data.source:
        if not (shards / DATASET_FILE).is_file():
            raise ConfigError(
                f"data.shards: {shards}: nothing is packed there; run `choral pack SOURCE {shards}`, or set data.source"
            )
        return
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task(f"packing {config.data.source}", total=None)
        pack(
            config.data.source,
            shards,
            PackOptions(**asdict(config.data.pack)),
            lambda done, total: progress.update(task, completed=done, total=total),
        )


def train_one(
    config: Config, folder: RunFolder, arguments: Sequence[str], processes: int, machines: Machines | None = None
) -> int:
    """Train one network through the launcher, sharing this terminal.

    Args:
        config, folder: of the run.
        arguments: config file and overrides, as the user gave them.
        processes: ranks of this machine; 0: all GPUs, or one.
        machines: that train it together, each by a call of its own; None: this one alone.

    Returns:
        0 done, 1 failed (the reason has been printed), 75 stopped.

    Raises:
        ConfigError, DataError: found before anything is started.
    """
    folder.check_same(config)
    if folder.result is not None:
        print(f"{folder.path}: already trained", file=sys.stderr)
        return 0
    if reason := why_not_trained(config.data.resample, folder):
        print(f"{folder.path}: not trained: {reason}", file=sys.stderr)
        return 0
    preflight(config)
    return _launch("choral.train", [*arguments, "--folder", str(folder.path)], processes, folder, machines)


def train_all(config: Config, folder: RunFolder, console: Console) -> int:
    """Train all members that are not trained yet.

    Returns:
        0: all are trained; 1: some failed for good, which has been said; 75: stopped.

    Raises:
        ConfigError, DataError: found before the first member is started.
        ChoralError: no member could be trained.
    """
    _check_before_start(config)
    if not members_of(config):
        folder.claim(config)
        return train_one(config, folder, [str(folder.path / "config.yaml")], processes=0)
    with folder.lock():
        folder.check_same(config)
        jobs = pending_jobs(config, folder)
        folder.claim(config)
        slots, retries = slots_of(config, _gpus()), config.ensemble.retries
        if config.ensemble.boosting:
            outcomes = run_chain(folder, jobs, slots, retries, console)
        else:
            outcomes = run_members(jobs, slots, retries, console) if jobs else []
    failed = [outcome for outcome in outcomes if outcome.state == "failed"]
    if any(outcome.state == "stopped" for outcome in outcomes):
        console.print("stopped; run the same command again to continue")
        return Stopped.exit_code
    members, rounds = member_folders(folder, config), rounds_of(folder)
    ended = rounds.ended if rounds is not None else ""
    if all(member.result is None for member in members.values()):
        why = failed[0].message if failed else ended
        raise ChoralError(f"{folder.path}: none of {len(members_of(config))} members could be trained: {why}")
    if ended:
        console.print(f"boosting has ended: {ended}", markup=False, highlight=False, soft_wrap=True)
    if failed:
        words = how_many(len(members), absent_members(folder, config))
        console.print(words, style="yellow", markup=False, highlight=False, soft_wrap=True)
    return 1 if failed else 0


def evaluate(folder: RunFolder, overrides: Sequence[str], processes: int, force: bool) -> int:
    """Write the ledgers of a run through the launcher, sharing this terminal, and return the exit status.

    Without a number of processes: all GPUs, or a rank for each of up to four cores.

    Raises:
        ConfigError, DataError: found before anything is started.
    """
    config = evaluation_config(folder, overrides)
    plan = plan_evaluation(config, folder, Dataset.open(config.data.shards))
    if not force and not plan.missing():
        print(f"{folder.path}: already evaluated", file=sys.stderr)
    else:
        arguments = [str(folder.path), *overrides, *(["--force"] if force else [])]
        if not processes and not _gpus():
            processes = min(4, len(os.sched_getaffinity(0)))  # ranks scale better than threads, and change no figure
        code = _launch("choral.predict", arguments, processes, folder)
        if code:
            return code
    show_evaluation(config, folder)
    _say_absent(folder, config)
    return 0


def show_evaluation(config: Config, folder: RunFolder) -> None:
    """Write the images of the worst predictions into the run folder, and send them and the scores to W&B.

    What is there, or was sent, is left; an earlier start may have been killed before. What goes wrong is told and left.
    """
    from choral.ensemble.worst import keep_worst

    for split in config.evaluate.splits if config.tracking.worst_images > 0 else ():
        try:
            ledger = Ledger.open(folder.predictions / f"{split}.parquet")
            index = Index.open(Dataset.open(config.data.shards), split)
            keep_worst(ledger, index, config.tracking.worst_images, folder.path / f"worst-{split}")
        except (ChoralError, OSError) as error:
            print(f"the worst predictions of split {split} are not shown: {error}", file=sys.stderr)
    if config.tracking.wandb != "off":
        track_evaluation(config, folder)


def track_evaluation(config: Config, folder: RunFolder) -> None:
    """Send the table of scores and the images of the worst predictions to W&B; what goes wrong is told and left.

    RUN/wandb-evaluation.json says which ledgers were sent where, so that each is sent once, by whichever call can.
    """
    from choral.ensemble.worst import worst_pictures
    from choral.tracking.wandb_run import WandbRun

    mark, tracking = folder.path / "wandb-evaluation.json", config.tracking
    ledgers = {split: folder.predictions / f"{split}.parquet" for split in config.evaluate.splits}
    target = f"{tracking.wandb} {tracking.entity or ''}/{tracking.project}/{tracking.group or ''}"
    run: WandbRun | None = None
    try:
        sent = read_json(mark) or {}
        due = {split: f"{sha256_of(path)} to {target}" for split, path in ledgers.items()}
        if due.items() <= sent.items():
            return
        run = WandbRun(config, folder, "evaluation")
        for split in due:
            index = Index.open(Dataset.open(config.data.shards), split)
            pictures = worst_pictures(Ledger.open(ledgers[split]), index, tracking.worst_images, config.data.max_pixels)
            run.show(split, score(folder, split)["rows"], pictures)
        run.close(failed=False)
        if run.took_all:
            write_json(mark, {**sent, **due})
    except Exception as error:  # a tracker must never cost an evaluation
        print(f"W&B does not get the evaluation: {type(error).__name__}: {error}", file=sys.stderr)
        if run is not None:
            run.close(failed=True)


def score(folder: RunFolder, split: str | None) -> scoring.Scores:
    """Score the ledger of a split and keep the result in the run folder.

    Args:
        folder: of the run.
        split: None: `default_split`.

    Raises:
        DataError: the split has not been evaluated.
    """
    config = folder.config()
    ledger = evaluated(folder, config, split)
    name = ledger.meta.split
    references = [asdict(reference) for reference in config.references if reference.split == name]
    absent = absent_from(ledger.members, folder, config)
    scores = scoring.score_run(
        ledger,
        references,
        absent,
        configured=len(member_folders(folder, config)),
        known=known_of(folder, config, ledger),
    )
    write_json(folder.path / f"scores-{name}.json", scores)
    if scores["diversity"] is not None:
        write_atomic(diversity_figure(folder, name), draw_diversity(scores["diversity"], name))
    return scores


def combine(folder: RunFolder, split: str | None, asked: Asked) -> dict[str, Any]:
    """Combine what the members of a run said about a split; see `combine_run`.

    Args:
        folder: of the run.
        split: None: `default_split`.
        asked: the rule and what belongs to it.
    """
    config = folder.config()
    name = evaluated(folder, config, split).meta.split
    return combine_run(folder, config, name, asked)


def evaluated(folder: RunFolder, config: Config, split: str | None) -> Ledger:
    """Return the ledger of a split; None: `default_split`.

    Raises:
        DataError: the split has not been evaluated.
    """
    name = split or default_split(folder, config)
    path = folder.predictions / f"{name}.parquet"
    if not path.is_file():
        found = ", ".join(sorted(file.stem for file in folder.predictions.glob("*.parquet"))) or "none"
        raise DataError(
            f"{folder.path}: split '{name}' has not been evaluated (evaluated: {found}); run `choral evaluate {folder.name}`"
        )
    return Ledger.open(path)


def default_split(folder: RunFolder, config: Config) -> str:
    """Return the split that is scored if none is named: test where it is evaluated, else the last of evaluate.splits."""
    return "test" if (folder.predictions / "test.parquet").is_file() else config.evaluate.splits[-1]


def print_scores(scores: scoring.Scores, folder: RunFolder, console: Console) -> None:
    """Print the table of scores, and of several members what they gain, why, and where the figure of it is."""
    console.print(render(scores))
    if scores["diversity"] is not None:
        console.print(render_diversity(scores["diversity"]))
        console.print(
            f"Figure: {diversity_figure(folder, scores['split'])}", markup=False, highlight=False, soft_wrap=True
        )


def diversity_figure(folder: RunFolder, split: str) -> Path:
    """Return the path of the figure of what a split says about the gain and the diversity of members."""
    return folder.path / f"diversity-{split}.svg"


def scores_as_json(scores: scoring.Scores) -> str:
    """Return the scores for machines."""
    return scoring.to_json(scores)


def predict(folder: RunFolder, images: Sequence[Path]) -> Iterator[Answer]:
    """Yield what the trained members of a run answer for each image file.

    Raises:
        ChoralError: no member is trained.
    """
    import torch

    from choral.predict.images import predict_images

    config = folder.config()
    voices, _ = voices_of(folder, config)
    _say_absent(folder, config)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    yield from predict_images(config, voices, images, device)


def check_run(config: Config) -> None:
    """Find what would fail after the training of the first member, or of the last, as far as that needs no torch.

    Raises:
        ConfigError, DataError: naming the key, folder, shard or split.
    """
    expand(config.evaluate.views)
    members = [member_config(config, member.name) for member in members_of(config)]
    for own in members or [config]:
        preflight(own)
    dataset = Dataset.open(config.data.shards)
    for split in config.evaluate.splits:
        Targets.open(config, Index.open(dataset, split))


def _check_before_start(config: Config) -> None:
    """Like `check_run`, with the names of networks and optimizers, which torch's libraries know.

    Raises:
        ConfigError, DataError: naming the key, folder, shard or split.
    """
    check_run(config)
    if all(member.result for member in member_folders(RunFolder.of(config), config).values()):
        return  # their names were right
    from choral.model.build import check_name
    from choral.train.optim import check_optimizer

    members = [member_config(config, member.name) for member in members_of(config)]
    for own in members or [config]:
        check_name(own.model.name)
        check_optimizer(own.train.optimizer)


def _say_absent(folder: RunFolder, config: Config) -> None:
    if words := how_many(len(member_folders(folder, config)), absent_members(folder, config)):
        print(words, file=sys.stderr)


def _gpus() -> list[str]:
    """Return the ids of this machine's GPUs, as CUDA_VISIBLE_DEVICES takes them."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return []  # torch, which takes seconds to import, would find none either
    import torch

    count = torch.cuda.device_count()
    visible = [part for part in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if part]
    return visible[:count] if visible else [str(number) for number in range(count)]


def _launch(
    module: str, arguments: Sequence[str], processes: int, folder: RunFolder, machines: Machines | None = None
) -> int:
    gpus = len(_gpus())
    _check_gpus(gpus)
    if machines is None or machines.rank == 0:
        if os.environ.get("SLURM_RESTART_COUNT"):
            folder.wait_for_lock(_EARLIER_START_S)  # a node that failed may not know yet
        with folder.lock():  # nobody else is at work here: what an earlier start left is out of date
            if not _stop_is_meant_for_this_start(folder):
                folder.stop_file.unlink(missing_ok=True)
            if folder.status:
                folder.report(**{**folder.status, "state": "starting"})
    command, env = launch_command(module, arguments, processes or max(1, gpus), gpus > 0, machines)
    code, asked_to_stop = run_in_foreground(command, env, request_stop=folder.stop_file.touch)
    if code == 0:
        return 0
    # The launcher turns every exit status into 1; the folder tells whether the ranks were stopped.
    return Stopped.exit_code if asked_to_stop or folder.status.get("state") == "stopped" else 1


def _check_gpus(found: int) -> None:
    """Check that a job that was given GPUs sees them: hours on a GPU node's cores would look as if all were well.

    Raises:
        ConfigError: it sees none, and was not told to use none.
    """
    given = os.environ.get("SLURM_GPUS_ON_NODE", "0")
    on_purpose = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("true", "1", "yes")
    if not found and given != "0" and not on_purpose and os.environ.get("CUDA_VISIBLE_DEVICES") != "":
        raise ConfigError(
            f"SLURM gave this job {given} GPUs of {socket.gethostname()}, but torch sees none: look for its driver "
            "(nvidia-smi), and for a torch without CUDA (python -c 'import torch; print(torch.version.cuda)')"
        )


def _stop_is_meant_for_this_start(folder: RunFolder) -> bool:
    """Whether the stop file names this start of this SLURM job: its script may be told to stop before we are at work."""
    job, restarts = os.environ.get("SLURM_JOB_ID"), os.environ.get("SLURM_RESTART_COUNT", "0")
    try:
        return job is not None and folder.stop_file.read_text().strip() == f"{job}.{restarts}"
    except FileNotFoundError:
        return False
