"""The verb that lets a bundle answer over HTTP: serve."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from choral.cli.parser import Verbs, stdout
from choral.core.errors import ConfigError

if TYPE_CHECKING:
    from choral.deploy.serve.limits import Limits


def add_serve_verb(verbs: Verbs) -> None:
    """Add serve."""
    verb = verbs.add(
        "serve",
        serve_verb,
        "choral serve bundle/",
        "Answer over HTTP: a page that takes images by drag and drop, POST /predict for programs (JSON), /docs and\n"
        "/openapi.json, /health, /metrics (Prometheus). Images that wait at the same time are asked about together.\n"
        "What is sent to it, its memory and the time of a request are bounded; what is too much is refused with a status\n"
        "that says so. SIGTERM or Ctrl-C: what was taken in is answered, then it ends. Needs pip install 'choral[serve]'.\n\n"
        "  curl -F file=@photo.jpg http://127.0.0.1:8000/predict\n"
        "  choral serve bundle/ --host 0.0.0.0 --allow-host models.example.org   # behind a proxy that knows who may ask",
    )
    verb.add_argument("target", metavar="BUNDLE|RUN", help="what `choral export` wrote, or a run that is trained")
    verb.add_argument("--host", default="127.0.0.1", help="where it listens (default: this machine alone)")
    verb.add_argument("--port", type=int, default=8000, help="0: any that is free (default: %(default)s)")
    verb.add_argument(
        "--allow-host", action="append", default=[], metavar="NAME", help="a further name that it is asked under"
    )
    verb.add_argument("--open", action="store_true", help="open the page in the browser")
    verb.add_argument("--form", choices=("torch", "onnx", "pt2"), default="torch", help="that answers (default: torch)")
    verb.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 ... (default: a GPU, if there is one)")
    _add_limits(verb)
    verb.add_argument("--quiet", action="store_true", help="log no requests but those that failed here")


def _add_limits(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--batch-size", type=int, default=32, metavar="N", help="images at once (default: %(default)s)")
    verb.add_argument(
        "--wait-ms", type=float, default=5, help="an image waits for others on their way (default: %(default)s)"
    )
    verb.add_argument(
        "--queue", type=int, default=256, metavar="N", help="images in work; more: 503 (default: %(default)s)"
    )
    verb.add_argument(
        "--max-bytes", default="20MB", metavar="SIZE", help="of a request; more: 413 (default: %(default)s)"
    )
    verb.add_argument(
        "--max-files", type=int, default=32, metavar="N", help="a request; more: 413 (default: %(default)s)"
    )
    verb.add_argument(
        "--max-pixels",
        type=int,
        metavar="N",
        help="of an image; more: 413 (default: 50,000,000, or the bundle's own limit if that is lower)",
    )
    verb.add_argument(
        "--buffer", default="256MB", metavar="SIZE", help="of all uploads at once; more: 503 (default: %(default)s)"
    )
    verb.add_argument(
        "--timeout-s", type=float, default=30, help="to arrive (408) and to be answered (504; default: %(default)s)"
    )
    verb.add_argument("--workers", type=int, metavar="N", help="threads that decode (default: up to 4, one a core)")


def serve_verb(options: argparse.Namespace) -> int:
    """Answer over HTTP: a page, a JSON endpoint, health and metrics."""
    try:
        from choral.deploy.serve.server import Server, address_of, bound_socket, is_loopback, log_to_stderr
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in ("fastapi", "pydantic", "python_multipart", "starlette", "uvicorn"):
            raise
        raise ConfigError(f"choral serve: {error.name} is not installed; pip install 'choral[serve]'") from error
    if not 0 <= options.port < 65536:
        raise ConfigError(f"--port: {options.port}, expected 0 to 65535")
    limits = _limits_of(options)
    with bound_socket(options.host, options.port) as bound:
        from choral.deploy.bundle.open_predictor import open_predictor
        from choral.runs.memory import keep_freed

        keep_freed()
        predictor = open_predictor(options.target, options.device, options.form, _say)
        if options.max_pixels is None:
            limits = replace(limits, max_pixels=min(limits.max_pixels, predictor.max_pixels))
        address = address_of(bound)
        if not is_loopback(bound):
            _say(
                f"warning: {options.host} is reached by other machines, and whoever reaches it may ask; put a proxy before it"
                " that knows who may, or leave --host away"
            )

        def started() -> None:
            stdout.print(
                f"{predictor.name} answers at {address} (Ctrl-C ends)", markup=False, highlight=False, soft_wrap=True
            )
            if options.open:
                import webbrowser

                webbrowser.open(address)

        log_to_stderr(options.quiet)
        answered = Server(predictor, limits, bound, options.allow_host, started).serve_until_told()
    _say(f"ended; {answered:,} image{'' if answered == 1 else 's'} answered")
    return 0


def _limits_of(options: argparse.Namespace) -> Limits:
    from choral.deploy.serve.limits import MAX_PIXELS, Limits, bytes_of

    return Limits(
        batch_size=options.batch_size,
        wait_ms=options.wait_ms,
        queue=options.queue,
        max_bytes=bytes_of(options.max_bytes),
        max_files=options.max_files,
        max_pixels=MAX_PIXELS if options.max_pixels is None else options.max_pixels,
        buffer=bytes_of(options.buffer),
        timeout_s=options.timeout_s,
        workers=min(4, os.cpu_count() or 1) if options.workers is None else options.workers,
    )


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
