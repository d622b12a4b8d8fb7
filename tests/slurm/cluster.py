"""A SLURM cluster of two nodes on the loopback interface, from Debian's packages, in a temporary folder.

munged, slurmctld and two slurmd run below a "child subreaper" (prctl(2)), which jobs cannot leave: when the cluster is
stopped, nothing of it is left. Each slurmd has a mount and a host name of its own, so that jobs see two machines.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

NODES = ("choral1", "choral2")
CONF = """\
ClusterName=choral
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
KillWait=5
ReturnToService=2
GresTypes=gpu
NodeName={nodes[0]} NodeHostname={nodes[0]} NodeAddr=127.88.{net}.1 Port={ports[0]} CPUs=4 RealMemory=64000 Gres=gpu:2
NodeName={nodes[1]} NodeHostname={nodes[1]} NodeAddr=127.88.{net}.2 Port={ports[1]} CPUs=4 RealMemory=64000 Gres=gpu:2
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
_READY_S = 90.0  # a second, on a machine with nothing else to do
# The cluster ends with the process that started it: whatever ends that one closes the pipe.
SUPERVISE = "import sys; from cluster import supervise; supervise(sys.argv[1])"


def missing() -> str:
    """Return why a cluster cannot be started on this machine, or ""."""
    paths = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"))
    not_installed = [
        name for name in ("munged", "slurmctld", "slurmd", "sbatch", "unshare") if not shutil.which(name, path=paths)
    ]
    if not_installed:
        return f"no {', '.join(not_installed)}: apt-get install slurm-wlm munge"
    tried = subprocess.run(["unshare", "--mount", "--uts", "true"], capture_output=True, text=True, check=False)
    if tried.returncode:  # not root, or root of a container without CAP_SYS_ADMIN
        return f"nodes cannot have host names of their own here: {tried.stderr.strip()}"
    return ""


class Cluster:
    """A context manager that runs a cluster; `conf` is the value of SLURM_CONF for its clients."""

    def __enter__(self) -> Cluster:
        self.folder = Path(tempfile.mkdtemp(prefix="choral-slurm-", dir="/tmp"))  # short: sockets have 107 letters
        self.conf = self.folder / "slurm.conf"
        try:
            self._configure()
            self._process = subprocess.Popen(
                [sys.executable, "-c", SUPERVISE, str(self.folder)],
                env={
                    "PATH": f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin",
                    "PYTHONPATH": str(Path(__file__).parent),
                },
                stdin=subprocess.PIPE,
                start_new_session=True,
            )
            self._wait_until_ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        if process := getattr(self, "_process", None):
            process.stdin.close()
            process.wait(timeout=60)
        shutil.rmtree(self.folder, ignore_errors=True)  # there still, if the supervisor was not started

    def _configure(self) -> None:
        folder = self.folder
        folder.chmod(0o755)
        port, *ports = _free_ports(3)
        net = port % 250
        self.conf.write_text(CONF.format(folder=folder, port=port, ports=ports, nodes=NODES, net=net))
        (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")  # none is used, but one has to be named
        (folder / "gres.conf").write_text(f"AutoDetect=off\nName=gpu File={folder}/gpu[0-1]\n")
        for number in range(2):
            (folder / f"gpu{number}").symlink_to("/dev/null")
        (folder / "key").write_bytes(os.urandom(128))
        (folder / "key").chmod(0o600)
        names = "".join(f"127.88.{net}.{number} {name}\n" for number, name in enumerate(NODES, 1))
        (folder / "hosts").write_text(Path("/etc/hosts").read_text() + names)
        for name in ("state", *NODES):
            (folder / name).mkdir()

    def _wait_until_ready(self) -> None:
        env, deadline = {**os.environ, "SLURM_CONF": str(self.conf)}, time.monotonic() + _READY_S
        while time.monotonic() < deadline and self._process.poll() is None:
            words = ["sinfo", "--noheader", "--Node", "--format=%T"]
            found = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
            if found.stdout.split() == ["idle", "idle"]:
                return
            time.sleep(0.1)
        logs = "\n".join(f"== {log.name}\n{log.read_text()[-2000:]}" for log in sorted(self.folder.glob("*.log")))
        raise RuntimeError(f"the cluster does not come up\n{logs}")


def supervise(folder: str) -> None:
    """Run the daemons until standard input closes, then end all their descendants."""
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
    munge = ["--socket", f"{folder}/munge.socket", "--key-file", f"{folder}/key", "--seed-file", f"{folder}/seed"]
    munge += ["--pid-file", f"{folder}/munge.pid", "--log-file", f"{folder}/munge.log"]
    _start(folder, "munged", "--foreground", "--force", *munge)
    deadline = time.monotonic() + _READY_S
    while not Path(folder, "munge.socket").exists() and time.monotonic() < deadline:
        if select.select([sys.stdin], [], [], 0.02)[0]:  # it closes: nobody waits any more
            break
    _start(folder, "slurmctld", "-D", "-c", "-f", f"{folder}/slurm.conf")
    for name in NODES:
        script = 'hostname "$1" && mount --bind "$2/hosts" /etc/hosts && exec slurmd -D -N "$1" -f "$2/slurm.conf"'
        _start(folder, "unshare", "--mount", "--uts", "sh", "-c", script, "sh", name, folder)
    sys.stdin.read()
    _end_all()
    shutil.rmtree(folder)


def _end_all() -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + 3
        while (left := _descendants()) and time.monotonic() < deadline:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            time.sleep(0.1)
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass


def _start(folder: str, *command: str) -> None:
    with Path(folder, f"{command[0]}.out.log").open("ab") as output:
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)


def _descendants() -> list[int]:
    """Return the descendants of this process, including zombies."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(entry.parent.name)] = int(entry.read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):  # it has ended meanwhile
            continue
    found = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return [pid for pid in found - {os.getpid()} if Path(f"/proc/{pid}").exists()]


def _free_ports(count: int) -> list[int]:
    """Return free ports, above those of the rendezvous and below the ephemeral ones."""
    ports: list[int] = []
    for port in random.sample(range(30000, 32768), 200):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            ports.append(port)
        if len(ports) == count:
            return ports
    raise RuntimeError("no free ports")
