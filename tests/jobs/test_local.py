"""Jobs on this machine, with real processes: how they end, retries, slots, logs."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import pytest
from rich.console import Console

from choral.core.errors import ConfigError
from choral.jobs import Job, run_jobs
from choral.jobs import local as local_module
from job_processes import python, run


class TestOutcomes:
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
        assert "job: exit status 1, restarting it (try 1)" in output.getvalue()
        (outcome,) = run(Job("job", python("raise SystemExit(3)"), tmp_path), retries=1)
        assert (outcome.state, outcome.exit_code, outcome.attempts) == ("failed", 3, 2)
        assert "try" not in outcome.log_tail  # of its own attempt alone

    def test_exit_status_75_restarts_while_there_is_progress(self, tmp_path: Path) -> None:
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

    def test_arguments_and_names_are_passed_unchanged(self, tmp_path: Path) -> None:
        awkward = ["a b", "'quoted' \"twice\"", "$(touch pwned); `id`", "größe\n[red]x", "--", ""]
        code = "import sys, pathlib; pathlib.Path(sys.argv[1]).write_text(repr(sys.argv[2:]), 'utf-8')"
        folder = tmp_path / "a folder with 'quotes' [bold]"
        output = io.StringIO()
        (outcome,) = run(Job("[red]job", python(code, tmp_path / "out", *awkward), folder), output=output)
        assert outcome.state == "done"
        assert (tmp_path / "out").read_text("utf-8") == repr(awkward)
        assert "[red]job: done" in output.getvalue()

    def test_no_jobs_and_invalid_jobs(self, tmp_path: Path) -> None:
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

    def test_a_log_that_cannot_be_written_fails_only_its_job(self, tmp_path: Path) -> None:
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
    def test_one_job_per_slot_with_the_variables_of_the_slot(self, tmp_path: Path) -> None:
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


def test_progress_is_displayed_and_its_errors_do_not_stop_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_module, "_DISPLAY_S", 0.0)

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
