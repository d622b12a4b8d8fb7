"""Starts trainings in milliseconds: imports everything once, then forks a process for each line of JSON arguments on stdin.

Prints two lines per training: its pid, and its exit status when it has ended. The processes share nothing that matters: the
parent has opened no data, built no network and started no thread.
"""

from __future__ import annotations

import json
import os
import sys

import timm  # noqa: F401 (imported for the children)
import torch

import choral.training.loop  # noqa: F401
from choral.training.__main__ import main


def serve() -> None:
    torch.set_num_threads(1)
    for line in sys.stdin:
        arguments = json.loads(line)
        pid = os.fork()
        if pid == 0:
            os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # stdout is the server's
            os._exit(main(arguments))
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    serve()
