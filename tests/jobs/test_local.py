"""Jobs on this machine, with real processes: ends, retries, slots, logs, and a stop that leaves nothing behind."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from rich.console import Console

from choral.errors import ConfigError
from choral.jobs import Job, Outcome, run_jobs
from choral.jobs import local as local_module

SRC = Path(__file__).parents[2] / "src"


def python(code: str, *arguments: object) -> tuple[str, ...]:
    return (sys.executable, "-S", "-c", textwrap.dedent(code), *map(str, arguments))


def run(*jobs: Job, slots: int = 2, output: io.StringIO | None = None, **options: object) -> list[Outcome]:
    console = Console(file=output or io.StringIO(), width=100)
    return run_jobs(jobs, slots=[{}] * slots, console=console, **{"grace_s": 3.0, **options})  # type: ignore[arg-type]


def wait_for(condition: Callable[[], bool], timeout_s: float = 10.0) -> bool:
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return condition()


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def pids(folder: Path) -> list[int]:
    return [int(path.name) for path in folder.glob("[0-9]*")]


# A stand-in for torchrun and its workers: a child in a session of its own, a grandchild whose parent is gone at once.
# All of them write their pid, ignore SIGTERM where asked to, and would live for ever.
FAMILY = """
    import os, pathlib, signal, sys, time
    folder, stubborn = pathlib.Path(sys.argv[1]), sys.argv[2] == "stubborn"
    if stubborn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0 and os.fork() != 0:
            os._exit(0)
    (folder / str(os.getpid())).touch()
    while True:
        time.sleep(60)
"""


@pytest.fixture
def family(tmp_path: Path) -> Iterator[Path]:
    """A folder where processes note their pids; none may be left, whatever a test does."""
    folder = tmp_path / "pids"
    folder.mkdir()
    yield folder
    left = [pid for pid in pids(folder) if alive(pid)]
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert not left


class TestEnds:
    def test_done_failed_and_a_command_that_does_not_exist(self, tmp_path: Path) -> None:
        jobs = [
            Job("good", python("print('well done')"), tmp_path / "good"),
            Job("bad", python("import sys; print('one'); sys.exit('no such layer: fc2')"), tmp_path / "bad"),
            Job("absent", ("no-such-program",), tmp_path / "absent"),
            Job("killed", python("import os; os.kill(os.getpid(), 9)"), tmp_path / "killed"),
        ]
        output = io.StringIO()
        good, bad, absent, killed = run(*jobs, output=output, retries=0)
        assert (good.state, good.exit_code, good.attempts, good.log_tail) == ("done", 0, 1, "")
        assert (bad.state, bad.exit_code, bad.attempts) == ("failed", 1, 1)
        assert bad.log_tail.splitlines()[1:] == ["one", "no such layer: fc2"]
        assert bad.message.startswith(f"bad: failed, exit status 1 (1 attempt); log: {tmp_path}/bad/log.txt\n  | ")
        assert bad.message.endswith("\n  | one\n  | no such layer: fc2")
        assert bad.message in output.getvalue()
        assert (absent.state, absent.exit_code) == ("failed", 127)
        assert "no-such-program: cannot be started: No such file or directory" in absent.message
        assert killed.exit_code == 137
        assert "killed by SIGKILL (perhaps out of memory)" in killed.message
        assert good.message == "good: done"

    def test_retries_append_to_the_log(self, tmp_path: Path) -> None:
        code = """
            import pathlib, sys
            count = pathlib.Path(sys.argv[1])
            count.write_text(count.read_text() + "x" if count.exists() else "x")
            print("try", len(count.read_text()))
            sys.exit(len(count.read_text()) < 3)
        """
        output = io.StringIO()
        (outcome,) = run(Job("job", python(code, tmp_path / "count"), tmp_path), output=output, retries=2)
        assert (outcome.state, outcome.attempts) == ("done", 3)
        lines = (tmp_path / "log.txt").read_text().splitlines()
        assert [line for line in lines if line.startswith("try")] == ["try 1", "try 2", "try 3"]
        headers = [line for line in lines if line.startswith("===== attempt")]
        assert [header.split(",")[0] for header in headers] == [f"===== attempt {number}" for number in (1, 2, 3)]
        assert "job: exit status 1, starting it again (try 1)" in output.getvalue()
        (outcome,) = run(Job("job", python("raise SystemExit(3)"), tmp_path), retries=1)
        assert (outcome.state, outcome.exit_code, outcome.attempts) == ("failed", 3, 2)
        assert "try" not in outcome.log_tail  # of its own attempt alone

    def test_stopped_by_itself_starts_again_while_it_gets_further(self, tmp_path: Path) -> None:
        code = """
            import pathlib, sys
            step = pathlib.Path(sys.argv[1])
            done = int(step.read_text()) + 1 if step.exists() else 1
            step.write_text(str(min(done, int(sys.argv[2]))))
            sys.exit(0 if done == 6 else 75)
        """

        def token(job: Job) -> object:
            step = job.folder / "step"
            return step.read_text() if step.exists() else None

        moving = Job("moving", python(code, tmp_path / "a" / "step", 99), tmp_path / "a")
        stuck = Job("stuck", python(code, tmp_path / "b" / "step", 2), tmp_path / "b")
        first, second = run(moving, stuck, retries=0, progress_token=token)
        assert (first.state, first.attempts) == ("done", 6)
        assert (second.state, second.exit_code, second.attempts) == ("failed", 75, 5)
        assert "stopped by itself 3 times in a row without progress" in second.message

    def test_arguments_and_names_are_passed_on_untouched(self, tmp_path: Path) -> None:
        awkward = ["a b", "'quoted' \"twice\"", "$(touch pwned); `id`", "größe\n[red]x", "--", ""]
        code = "import sys, pathlib; pathlib.Path(sys.argv[1]).write_text(repr(sys.argv[2:]), 'utf-8')"
        folder = tmp_path / "a folder with 'quotes' [bold]"
        output = io.StringIO()
        (outcome,) = run(Job("[red]job", python(code, tmp_path / "out", *awkward), folder), output=output)
        assert outcome.state == "done"
        assert (tmp_path / "out").read_text("utf-8") == repr(awkward)
        assert "[red]job: done" in output.getvalue()

    def test_no_jobs_and_bad_jobs(self, tmp_path: Path) -> None:
        assert run() == []
        job = Job("a", ("true",), tmp_path)
        with pytest.raises(ConfigError, match="no slot"):
            run(job, slots=0)
        with pytest.raises(ConfigError, match="two jobs have the name 'a'"):
            run(job, Job("a", ("true",), tmp_path / "b"))
        with pytest.raises(ConfigError, match="two jobs have the folder"):
            run(job, Job("b", ("true",), tmp_path))
        with pytest.raises(ConfigError, match="b has no command"):
            run(job, Job("b", (), tmp_path / "b"))

    def test_a_log_that_cannot_be_written_fails_that_job_alone(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        bad, good = run(Job("bad", ("true",), tmp_path / "file" / "x"), Job("good", ("true",), tmp_path / "good"))
        assert (bad.state, bad.exit_code, bad.attempts) == ("failed", None, 0)
        assert "its log cannot be written (Not a directory)" in bad.message
        assert good.state == "done"

    def test_helpers_that_outlive_the_command_may_finish(self, tmp_path: Path) -> None:
        code = """
            import os, pathlib, sys, time
            if os.fork() == 0:
                os.setsid()
                time.sleep(0.3)
                pathlib.Path(sys.argv[1]).touch()
        """
        (outcome,) = run(Job("job", python(code, tmp_path / "finished"), tmp_path))
        assert outcome.state == "done"
        assert (tmp_path / "finished").exists()


class TestSlots:
    def test_no_more_at_once_than_slots_and_each_with_its_variables(self, tmp_path: Path) -> None:
        code = """
            import os, pathlib, sys, time
            folder = pathlib.Path(sys.argv[1])
            mine = folder / ("slot" + os.environ["SLOT"])
            mine.mkdir()                         # fails if the slot is in use
            print(os.environ["SLOT"], os.environ["OWN"], os.environ["BOTH"])
            time.sleep(0.1)
            mine.rmdir()
        """
        jobs = [
            Job(f"job{number}", python(code, tmp_path), tmp_path / f"job{number}", {"OWN": f"{number}", "BOTH": "job"})
            for number in range(5)
        ]
        slots = [{"SLOT": "a", "BOTH": "slot"}, {"SLOT": "b", "BOTH": "slot"}]
        outcomes = run_jobs(jobs, slots=slots, retries=0, console=Console(file=io.StringIO()))
        assert [outcome.job.name for outcome in outcomes] == [job.name for job in jobs]
        assert {outcome.state for outcome in outcomes} == {"done"}
        seen = [(tmp_path / job.name / "log.txt").read_text().splitlines()[-1].split() for job in jobs]
        assert {line[0] for line in seen} == {"a", "b"}
        assert [line[1:] for line in seen] == [[str(number), "slot"] for number in range(5)]


class Driver:
    """A process of its own that calls `run_jobs`, so that it can be killed."""

    def __init__(self, tmp_path: Path, command: tuple[str, ...], grace_s: float, jobs: int = 1) -> None:
        code = f"""
            import sys
            from pathlib import Path
            from choral.jobs import Job, run_jobs
            command, folder = tuple({list(command)!r}), Path({str(tmp_path)!r})
            jobs = [Job(f"job{{n}}", command, folder / f"job{{n}}") for n in range({jobs})]
            outcomes = run_jobs(jobs, slots=[{{}}] * 2, grace_s={grace_s}, retries=1)
            for outcome in outcomes:
                print(outcome.state, outcome.exit_code, outcome.attempts)
        """
        self.process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code)],
            env={**os.environ, "PYTHONPATH": str(SRC)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def output(self) -> tuple[list[str], str]:
        out, err = self.process.communicate(timeout=30)
        return out.splitlines(), err


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[Callable[..., Driver]]:
    drivers: list[Driver] = []

    def start(command: tuple[str, ...], grace_s: float = 5.0, jobs: int = 1) -> Driver:
        drivers.append(Driver(tmp_path, command, grace_s, jobs))
        return drivers[-1]

    yield start
    for item in drivers:
        if item.process.poll() is None:
            item.process.kill()
        item.process.communicate()


SAVES = """
    import os, pathlib, signal, sys, time
    folder = pathlib.Path(sys.argv[1])
    def stop(number, frame):
        time.sleep(0.2)
        (folder / "saved").touch()
        sys.exit(75)
    signal.signal(signal.SIGTERM, stop)
    (folder / str(os.getpid())).touch()
    while True:
        time.sleep(60)
"""


class TestStops:
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
    def test_a_signal_lets_jobs_save(self, family: Path, driver: Callable[..., Driver], number: signal.Signals) -> None:
        running = driver(python(SAVES, family), jobs=3)
        assert wait_for(lambda: len(pids(family)) == 2)
        running.process.send_signal(number)
        outcomes, messages = running.output()
        assert running.process.returncode == 0  # the call returned
        assert outcomes == ["stopped 75 1", "stopped 75 1", "stopped None 0"]
        assert (family / "saved").exists()
        assert "stopping: jobs have 5 s to save" in messages and "job2: stopped" in messages

    def test_what_ignores_the_signal_is_killed_after_the_grace(
        self, family: Path, driver: Callable[..., Driver]
    ) -> None:
        running = driver(python(FAMILY, family, "stubborn"), grace_s=0.5)
        assert wait_for(lambda: len(pids(family)) == 3)
        running.process.send_signal(signal.SIGTERM)
        outcomes, _ = running.output()
        assert outcomes == ["stopped 137 1"]
        assert not [pid for pid in pids(family) if alive(pid)]

    def test_a_second_interrupt_kills_at_once(self, family: Path, driver: Callable[..., Driver]) -> None:
        running = driver(python(FAMILY, family, "stubborn"), grace_s=300.0)
        assert wait_for(lambda: len(pids(family)) == 3)
        running.process.send_signal(signal.SIGINT)
        time.sleep(0.8)
        assert running.process.poll() is None
        running.process.send_signal(signal.SIGINT)
        assert running.output()[0] == ["stopped 137 1"]
        assert not [pid for pid in pids(family) if alive(pid)]

    @pytest.mark.parametrize("temper", ["stubborn", "docile"])
    def test_kill_9_of_the_parent_leaves_no_orphan(
        self, family: Path, driver: Callable[..., Driver], temper: str
    ) -> None:
        running = driver(python(FAMILY, family, temper), grace_s=0.5, jobs=2)
        assert wait_for(lambda: len(pids(family)) == 6)
        running.process.kill()
        assert wait_for(lambda: not [pid for pid in pids(family) if alive(pid)], 5.0)

    def test_kill_9_of_the_parent_lets_jobs_save(self, family: Path, driver: Callable[..., Driver]) -> None:
        running = driver(python(SAVES, family))
        assert wait_for(lambda: len(pids(family)) == 1)
        running.process.kill()
        assert wait_for(lambda: (family / "saved").exists() and not alive(pids(family)[0]), 5.0)

    def test_kill_9_of_the_guard_takes_its_job_along(self, family: Path, driver: Callable[..., Driver]) -> None:
        running = driver(python(FAMILY, family, "stubborn"))
        for attempt in (1, 2):
            before = set(pids(family))
            assert wait_for(lambda: len(pids(family)) == 3 * attempt)  # noqa: B023
            (guard,) = children(running.process.pid)
            os.kill(guard, signal.SIGKILL)
            assert attempt == 2 or wait_for(lambda: len(pids(family)) > 3)
            assert wait_for(lambda: not [pid for pid in before if alive(pid)])  # noqa: B023
        assert running.output()[0] == ["failed 137 2"]
        assert not [pid for pid in pids(family) if alive(pid)]

    def test_a_guard_that_is_terminated_passes_it_on(self, family: Path, driver: Callable[..., Driver]) -> None:
        running = driver(python(SAVES, family))
        assert wait_for(lambda: len(pids(family)) == 1)
        (guard,) = children(running.process.pid)
        os.kill(guard, signal.SIGUSR1)  # as SLURM may send it to every process of a step
        os.kill(guard, signal.SIGTERM)
        assert wait_for(lambda: (family / "saved").exists() and len(pids(family)) == 2)  # exit 75: started again
        running.process.send_signal(signal.SIGTERM)
        assert running.output()[0] == ["stopped 75 2"]

    def test_an_exception_passes_and_leaves_nothing(self, family: Path, tmp_path: Path) -> None:
        def token(job: Job) -> object:
            if job.name == "second":
                assert wait_for(lambda: len(pids(family)) == 3)
                raise RuntimeError("defect")
            return None

        first = Job("first", python(FAMILY, family, "stubborn"), tmp_path / "first")
        with pytest.raises(RuntimeError, match="defect"):
            run(first, Job("second", ("true",), tmp_path / "second"), progress_token=token)
        assert not [pid for pid in pids(family) if alive(pid)]
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def children(parent: int) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(entry.read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(entry.parent.name))
    return found


class TestEarlierRuns:
    def test_a_job_waits_for_the_processes_of_a_killed_run(
        self, family: Path, tmp_path: Path, driver: Callable[..., Driver]
    ) -> None:
        running = driver(python(SAVES, family))
        assert wait_for(lambda: len(pids(family)) == 1)
        running.process.kill()
        output = io.StringIO()
        code = "import sys, pathlib; sys.exit(not pathlib.Path(sys.argv[1]).exists())"
        (outcome,) = run(Job("job", python(code, family / "saved"), tmp_path / "job0"), output=output, retries=0)
        assert outcome.state == "done"  # it found what the earlier one saved
        assert "job: waiting for processes of an earlier run" in output.getvalue()

    def test_but_not_for_ever(
        self, family: Path, tmp_path: Path, driver: Callable[..., Driver], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        running = driver(python(SAVES, family))
        assert wait_for(lambda: len(pids(family)) == 1)
        monkeypatch.setattr(local_module, "_LOG_WAIT_S", 0.2)
        (outcome,) = run(Job("job", ("true",), tmp_path / "job0"))
        assert (outcome.state, outcome.attempts) == ("failed", 0)
        assert f"processes of another run are at work in {tmp_path}/job0" in outcome.message
        running.process.send_signal(signal.SIGTERM)
        assert running.output()[0] == ["stopped 75 1"]


def test_progress_is_shown_and_its_errors_end_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_module, "_SHOW_S", 0.0)

    def progress(job: Job) -> Mapping[str, str]:
        if job.name == "odd":
            raise ValueError("half-written")
        return {"step": "3/10", "images/s": "66"}

    output = io.StringIO()
    jobs = [Job(name, python("import time; time.sleep(0.4)"), tmp_path / name) for name in ("even", "odd")]
    outcomes = run(*jobs, output=output, progress=progress)
    assert {outcome.state for outcome in outcomes} == {"done"}
    assert "even: running, 0:00, step 3/10, images/s 66" in output.getvalue()
    assert "odd: running, 0:00, progress ValueError: half-written" in output.getvalue()
