"""Jobs that are stopped by signals, by kill -9 and by exceptions leave no process behind."""

from __future__ import annotations

import io
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from choral.jobs import Job
from choral.jobs import local as local_module
from job_processes import FAMILY, SAVES, Driver, alive, children, pids, python, run, wait_for


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

    def test_a_job_that_ignores_sigterm_is_killed_after_the_grace_period(
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

    def test_kill_9_of_the_guard_ends_its_job(self, family: Path, driver: Callable[..., Driver]) -> None:
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

    def test_a_guard_passes_sigterm_on(self, family: Path, driver: Callable[..., Driver]) -> None:
        running = driver(python(SAVES, family))
        assert wait_for(lambda: len(pids(family)) == 1)
        (guard,) = children(running.process.pid)
        os.kill(guard, signal.SIGUSR1)  # as SLURM may send it to every process of a step
        os.kill(guard, signal.SIGTERM)
        assert wait_for(lambda: (family / "saved").exists() and len(pids(family)) == 2)  # exit 75: started again
        running.process.send_signal(signal.SIGTERM)
        assert running.output()[0] == ["stopped 75 2"]

    def test_an_exception_leaves_no_process(self, family: Path, tmp_path: Path) -> None:
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

    def test_it_does_not_wait_forever(
        self, family: Path, tmp_path: Path, driver: Callable[..., Driver], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        running = driver(python(SAVES, family))
        assert wait_for(lambda: len(pids(family)) == 1)
        monkeypatch.setattr(local_module, "_LOG_WAIT_S", 0.2)
        (outcome,) = run(Job("job", ("true",), tmp_path / "job0"))
        assert (outcome.state, outcome.attempts) == ("failed", 0)
        assert f"processes of another run use {tmp_path}/job0" in outcome.message
        running.process.send_signal(signal.SIGTERM)
        assert running.output()[0] == ["stopped 75 1"]
