"""The sbatch scripts without a cluster: compared with committed files, and run with stand-ins for SLURM's commands."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from choral.cli import main
from choral.cli.workflow.slurm_submit import SubmittedJobs, _wait_for_ending_jobs
from choral.jobs.slurm import queue
from choral.jobs.slurm.queue import QueueEntry
from choral.jobs.slurm.scripts import TEMPLATES_DIR
from choral.runs.run_dir import RunDir
from toy_data import REPOSITORY

EXPECTED = Path(__file__).parent / "expected"
ENSEMBLE = "ensemble={architectures: [test_resnet, test_vit], seeds: 2, devices_per_member: 2}"
SITE = ["--site", str(REPOSITORY / "slurm" / "site.yaml")]
CASES = {
    "array": ([ENSEMBLE], ["--cpus", "8", "--mem", "16G", "--max-parallel", "2"]),
    "site": ([ENSEMBLE], [*SITE, "--gpus", "4", "--nodes", "2", "--time", "1-12", "--partition", "short"]),
    "chain": (["ensemble.boosting=3", "ensemble.retries=0"], []),
    "single": ([], ["--constraint", 'new "and" fast', "--time", "4:00:00"]),
}


@pytest.fixture
def no_cluster(config_file: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with toy.yaml, no SLURM and no site file."""
    monkeypatch.chdir(config_file.parent)
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("HOME", str(config_file.parent))
    monkeypatch.delenv("CHORAL_SITE", raising=False)
    return config_file.parent


@pytest.mark.parametrize("case", CASES)
def test_dry_runs_match_the_committed_files(case: str, no_cluster: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """To accept an intended change: `CHORAL_WRITE_EXPECTED=1 python -m pytest tests/slurm/test_scripts.py`."""
    overrides, options = CASES[case]
    assert main(["submit", "toy.yaml", *overrides, "--dry-run", *options]) == 0
    printed = capsys.readouterr().out.replace(sys.executable, "PYTHON")
    path = EXPECTED / f"{case}.txt"
    if os.environ.get("CHORAL_WRITE_EXPECTED"):
        path.write_text(printed)
    assert printed == path.read_text()
    assert not (no_cluster / "runs").exists()


def test_a_dry_run_of_a_search_matches_the_committed_file(no_cluster: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """To accept an intended change, see above."""
    command = ["tune", "toy.yaml", "--submit", "4", "--gpus", "2", "--time", "4:00:00", "--max-parallel", "2", *SITE]
    assert main([*command, "--dry-run"]) == 0
    printed = capsys.readouterr().out.replace(sys.executable, "PYTHON")
    path = EXPECTED / "tune.txt"
    if os.environ.get("CHORAL_WRITE_EXPECTED"):
        path.write_text(printed)
    assert printed == path.read_text()
    assert not (no_cluster / "runs").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--gpus", "-1"], "--gpus: expected 0 or more"),
        (["--nodes", "0"], "--nodes: expected at least 1"),
        (["--mem", "much"], "--mem: expected a size such as 32G"),
        (["--time", "soon"], "--time: expected minutes, H:M:S or D-H:M:S, got 'soon'"),
        (["--time", "2:30"], "--time: 2:30 is too short: a job saves 120 s before its limit; expected 3 minutes"),
        (["--max-parallel", "2"], "--max-parallel: this run has no members that can run at once"),
        (["--partition", "a\nb"], "--partition: unprintable characters in 'a\\nb'"),
        (["--site", "nowhere.yaml"], "nowhere.yaml: no such config file"),
        (["data.shards=nowhere"], "nowhere"),
        (
            [],
            "squeue: no such command: this machine is not part of a SLURM cluster; `choral run` trains on it directly",
        ),
    ],
)
def test_invalid_options_are_rejected_and_nothing_is_written(
    options: list[str], message: str, no_cluster: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["submit", "toy.yaml", *options, *([] if not options else ["--dry-run"])]) in (1, 2)
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (no_cluster / "runs").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("acount: a", "account"),
        ("modules: ['a; rm -rf /']", "modules: 'a; rm -rf /' is not a module name"),
        ("options: {array: 1-3}", "options.array: choral sets this option itself"),
        ("options: {Mail: x}", "options.Mail: expected a long option of sbatch, without dashes"),
        ("container: 'run \"open'", "container: 'run \"open': No closing quotation"),
        ("partition: [a, b]", "partition: expected text"),
    ],
)
def test_a_site_file_is_checked_like_a_config(
    text: str, message: str, no_cluster: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (no_cluster / "site.yaml").write_text(text)
    monkeypatch.setenv("CHORAL_SITE", "site.yaml")
    assert main(["submit", "toy.yaml", "--dry-run"]) == 2
    printed = " ".join(capsys.readouterr().err.split())
    assert "site.yaml: " in printed and message in printed


def test_the_user_s_site_file_is_found_and_options_win(no_cluster: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = no_cluster / ".config" / "choral" / "site.yaml"
    path.parent.mkdir(parents=True)
    path.write_text("partition: mine\naccount: ours\nscratch: /fast/$USER's/$(id)\n")
    assert main(["submit", "toy.yaml", "--dry-run", "--partition", "other"]) == 0
    printed = capsys.readouterr().out
    assert "#SBATCH --partition=other\n" in printed and "#SBATCH --account=ours\n" in printed
    (line,) = {line for line in printed.splitlines() if line.startswith("export CHORAL_SCRATCH")}
    shown = subprocess.run(
        ["/bin/bash", "-c", f'{line}; printf %s "$CHORAL_SCRATCH"'],
        env={"USER": "me"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout == "/fast/me's/$(id)"


def test_a_login_node_needs_no_torch(no_cluster: Path) -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'torchvision', 'timm', 'accelerate', 'albumentations', 'wandb'):\n"
        "    sys.modules[name] = None\n"
        "from choral.cli import main\n"
        "host = 'augment.host=[{name: CLAHE}]'\n"
        "sys.exit(main(['submit', 'toy.yaml', 'ensemble.seeds=2', host, '--dry-run']))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "--array=1,2 runs/toy/slurm/train.sbatch" in result.stdout
    # Nor can what submits train: the jobs take the choral that they find.
    assert result.stdout.count("\nchoral=(choral)\n") == 2


def test_variables_of_an_allocation_are_not_passed_to_the_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For example `choral submit` in an interactive job."""
    (tmp_path / "sbatch").write_text("#!/bin/sh\nenv > env\necho 7\n")
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.chdir(tmp_path)
    for key, value in {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SLURM_CONF": "c",
        "SLURM_RESTART_COUNT": "2",
    }.items():
        monkeypatch.setenv(key, value)
    assert queue.submit(["sbatch"]) == "7"
    lines = (tmp_path / "env").read_text().splitlines()
    assert "SLURM_CONF=c" in lines and not [line for line in lines if line.startswith("SLURM_RESTART_COUNT")]


_ATTEMPTS = """for run in my*; do echo '{"job": "42", "start": "3", "given_up": %s}' > "$run/attempts.json"; done; """
COUNTED, GIVEN_UP = _ATTEMPTS % "false", _ATTEMPTS % "true"


def test_the_site_s_time_limit_is_checked_too(no_cluster: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (no_cluster / "site.yaml").write_text("options: {time: '1'}")
    assert main(["submit", "toy.yaml", "--dry-run", "--site", "site.yaml"]) == 2
    assert "--time: 1 is too short" in capsys.readouterr().err


def test_submit_waits_for_jobs_that_are_ending(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`choral cancel RUN && choral submit CONFIG`: a job that is still saving does not count as queued."""
    run = RunDir(tmp_path)
    SubmittedJobs({"first": "7_1"}, "8").write(run)
    states = ["COMPLETING", "COMPLETING", "CANCELLED", "not reached"]
    monkeypatch.setattr(queue, "read_queue", lambda: {"7_1": QueueEntry(states.pop(0), "", "node1")})
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    with (tmp_path / "output").open("w") as output:
        assert _wait_for_ending_jobs(run, Console(file=output))["7_1"].state == "CANCELLED"
    assert (tmp_path / "output").read_text() == "waiting for jobs of this run that are ending\n"


class Script:
    """Runs a template with bash in its own folder, with stand-ins for `choral` and SLURM's commands."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.run = folder / "my 'first' \"run\""
        (self.run / "slurm").mkdir(parents=True)
        (self.run / "config.yaml").touch()
        self._processes: list[subprocess.Popen[str]] = []

    def start(self, template: str, choral: str, *arguments: object, **env: str) -> subprocess.Popen[str]:
        srun = 'while [ "${1#--}" != "$1" ]; do echo "$1" >> srun.log; shift; done; exec "$@"'
        for name, body in {
            "choral": choral,
            "srun": srun,
            "scontrol": 'if [ "$1" = show ]; then echo n1; echo n2; else echo "$@" >> scontrol.log; fi',
            "squeue": 'echo "${STATE:-RUNNING}"; [ "$2" != "--jobs=${SLURM_ARRAY_JOB_ID-}" ] || echo RUNNING',
        }.items():
            path = self.folder / name
            path.write_text(f"#!/usr/bin/env bash\n{body}\n")
            path.chmod(0o755)
        inherited = {key: value for key, value in os.environ.items() if key not in ("OMP_NUM_THREADS", "COLUMNS")}
        variables = {**inherited, "PATH": f"{self.folder}:{os.environ['PATH']}", "SLURM_JOB_ID": "42", **env}
        command = ["bash", str(TEMPLATES_DIR / template), *map(str, arguments)]
        process = subprocess.Popen(
            command, env=variables, cwd=self.folder, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._processes.append(process)
        return process

    def train(self, choral: str, *arguments: object, **env: str) -> subprocess.Popen[str]:
        return self.start("train.sbatch", choral, *(arguments or (self.run,)), **env)

    @property
    def requeued(self) -> str:
        """The job that was requeued, or ""."""
        log = self.folder / "scontrol.log"
        return log.read_text().removeprefix("requeue ").strip() if log.exists() else ""

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.communicate()


@pytest.fixture
def script(tmp_path: Path):
    script = Script(tmp_path)
    yield script
    script.close()


@pytest.mark.parametrize(
    ("lines", "code", "again"),
    [
        ("exit 0", 0, ""),
        ("exit 1", 1, ""),
        ("exit 75", 0, "42"),
        (f"{COUNTED}kill -9 $$", 0, "42"),
        ("kill -9 $$", 137, ""),  # it was killed before it was counted: so would be the next
        ("exit 255", 255, ""),  # as a container ends that does not open
        (f"{GIVEN_UP}kill -9 $$", 1, ""),  # by srun, on another node than the first, which has failed for good
    ],
)
def test_stopped_and_killed_jobs_are_requeued(script: Script, lines: str, code: int, again: str) -> None:
    assert script.train(lines, SLURM_RESTART_COUNT="3").wait(timeout=20) == code
    assert script.requeued == again


def test_a_task_with_the_id_of_its_array_is_requeued_without_the_others(script: Script) -> None:
    """SLURM gives the last task of an array the id of the array, which as a job id means all tasks."""
    env = {"SLURM_JOB_ID": "42", "SLURM_ARRAY_JOB_ID": "42", "SLURM_ARRAY_TASK_ID": "1"}
    (script.run / "slurm" / "members.txt").write_text("first\n")
    (script.run / "members" / "first").mkdir(parents=True)
    (script.run / "members" / "first" / "requested.yaml").touch()
    assert script.train("exit 75", **env).wait(timeout=20) == 0
    assert script.requeued == "42_1"


def test_a_cancelled_job_is_not_requeued(script: Script) -> None:
    assert script.train("exit 75", STATE="COMPLETING").wait(timeout=20) == 75
    assert not script.requeued


@pytest.mark.parametrize("template", ["train.sbatch", "evaluate.sbatch"])
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_writes_a_stop_file_and_the_script_waits_for_the_save(
    script: Script, template: str, number: signal.Signals
) -> None:
    stop = script.run / "stop"
    lines = f"touch ready; until [ -e {shlex.quote(str(stop))} ]; do sleep 0.05; done; touch saved; exit 75"
    process = script.start(template, lines, script.run, SLURM_RESTART_COUNT="3")
    while not (script.folder / "ready").exists():
        time.sleep(0.02)
    process.send_signal(number)
    assert process.wait(timeout=20) == 0
    assert (script.folder / "saved").exists()
    assert stop.read_text() == "42.3\n"  # names this start
    assert script.requeued == "42"


def test_arguments_are_passed_unchanged_with_one_rank_per_gpu(script: Script) -> None:
    lines = 'printf "%s\\n" "$@" > arguments; echo "$CUDA_VISIBLE_DEVICES $SRUN_CPUS_PER_TASK" > env'
    gpus = {"CUDA_VISIBLE_DEVICES": "2,3", "SLURM_GPUS_ON_NODE": "2", "SLURM_CPUS_PER_TASK": "6"}
    assert script.train(lines, **gpus).wait(timeout=20) == 0
    expected = ["train", f"{script.run}/config.yaml", "--folder", str(script.run), "--processes", "2"]
    assert (script.folder / "arguments").read_text().splitlines() == [*expected, "--retries", "1", "--max-stalls", "5"]
    assert (script.folder / "env").read_text() == "2,3 6\n"


def test_a_task_of_an_array_trains_its_member_on_all_its_nodes(script: Script) -> None:
    (script.run / "slurm" / "members.txt").write_text("first\nsecond one\n")
    (script.run / "members" / "second one").mkdir(parents=True)
    (script.run / "members" / "second one" / "requested.yaml").touch()
    lines = 'printf "%s\\n" "$@" > arguments; echo printed'
    env = {"SLURM_ARRAY_TASK_ID": "2", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "n[1-2]"}
    assert script.train(lines, **env).wait(timeout=20) == 0
    member = f"{script.run}/members/second one"
    arguments = (script.folder / "arguments").read_text().splitlines()
    assert arguments[:4] == ["train", f"{member}/requested.yaml", "--folder", member]
    assert arguments[-4:] == ["--machines", "2", "--rendezvous", "n1:20042"]
    assert (
        "--nodes=2\n--ntasks=2\n--ntasks-per-node=1\n--kill-on-bad-exit=0\n--wait=60\n"
        in (script.folder / "srun.log").read_text()
    )
    assert "printed" in Path(member, "log.txt").read_text()


@pytest.mark.parametrize(("cpus", "omp_threads", "threads"), [("6", "", "6"), ("", "", ""), ("6", "2", "2")])
def test_threads_of_a_cpu_rank(script: Script, cpus: str, omp_threads: str, threads: str) -> None:
    env = {key: value for key, value in {"SLURM_CPUS_PER_TASK": cpus, "OMP_NUM_THREADS": omp_threads}.items() if value}
    assert script.train('echo "$OMP_NUM_THREADS" > threads', **env).wait(timeout=20) == 0
    assert (script.folder / "threads").read_text().strip() == (threads or "1")


def test_wrong_usage_is_reported(script: Script) -> None:
    for template, arguments in (("train.sbatch", "[MEMBER]"), ("evaluate.sbatch", "RUN")):
        process = script.start(template, "exit 0")
        assert process.wait(timeout=20) == 2
        assert process.stderr is not None
        assert arguments in process.stderr.read()
    process = script.train("exit 0", script.run, "nobody")
    assert process.wait(timeout=20) == 2
    assert process.stderr is not None and "members/nobody/requested.yaml: no such file" in process.stderr.read()


@pytest.mark.parametrize(("lines", "code"), [("exit 0", 0), ('[ "$1" != status ]', 1), ('[ "$1" != evaluate ]', 1)])
def test_the_evaluation_exits_with_1_if_members_are_missing(script: Script, lines: str, code: int) -> None:
    assert script.start("evaluate.sbatch", lines, script.run).wait(timeout=20) == code
