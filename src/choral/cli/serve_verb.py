"""The verb serve."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from choral.cli.consoles import stdout
from choral.cli.parser import Verbs
from choral.core.errors import ConfigError

if TYPE_CHECKING:
    from choral.deploy.serve.limits import Limits


def add_verbs(verbs: Verbs) -> None:
    """Add `serve`."""
    verb = verbs.add(
        "serve",
        serve_verb,
        "choral serve bundle/",
        "Serve predictions over HTTP: a web page with drag and drop, POST /predict (JSON), /docs and /openapi.json,\n"
        "/health, /metrics (Prometheus). Images that wait at the same time are predicted in one batch. Upload size,\n"
        "memory and time per request are bounded; more is refused with a matching status. On SIGTERM or Ctrl-C accepted\n"
        "requests are finished first. Needs pip install 'choral[serve]'.\n\n"
        "  curl -F file=@photo.jpg http://127.0.0.1:8000/predict\n"
        "  choral serve bundle/ --host 0.0.0.0 --allow-host models.example.org   # behind an authenticating proxy",
    )
    verb.add_argument("target", metavar="BUNDLE|RUN", help="a bundle that `choral export` wrote, or a trained run")
    verb.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    verb.add_argument("--port", type=int, default=8000, help="port; 0: any free one (default: %(default)s)")
    verb.add_argument("--allow-host", action="append", default=[], metavar="NAME", help="a further accepted host name")
    verb.add_argument("--open", action="store_true", help="open the page in the browser")
    verb.add_argument(
        "--form",
        choices=("torch", "onnx", "pt2"),
        default="torch",
        help="what runs a bundle: its models, or an exported file (default: torch)",
    )
    verb.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 ... (default: a GPU if there is one)")
    _add_limits(verb)
    verb.add_argument("--quiet", action="store_true", help="log only requests that failed with a server error")


def _add_limits(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--batch-size", type=int, default=32, metavar="N", help="maximum batch size (default: %(default)s)"
    )
    verb.add_argument(
        "--wait-ms",
        type=float,
        default=5,
        help="time that an image waits for others to fill a batch (default: %(default)s)",
    )
    verb.add_argument(
        "--queue", type=int, default=256, metavar="N", help="images in progress; more: 503 (default: %(default)s)"
    )
    verb.add_argument(
        "--max-bytes", default="20MB", metavar="SIZE", help="size of a request; more: 413 (default: %(default)s)"
    )
    verb.add_argument(
        "--max-files", type=int, default=32, metavar="N", help="files per request; more: 413 (default: %(default)s)"
    )
    verb.add_argument(
        "--max-pixels",
        type=int,
        metavar="N",
        help="pixels of an image; more: 413 (default: 50,000,000, or the bundle's limit if lower)",
    )
    verb.add_argument(
        "--buffer",
        default="256MB",
        metavar="SIZE",
        help="size of all uploads in progress; more: 503 (default: %(default)s)",
    )
    verb.add_argument(
        "--timeout-s",
        type=float,
        default=30,
        help="seconds for a body to arrive (408) and for its prediction (504; default: %(default)s)",
    )
    verb.add_argument("--workers", type=int, metavar="N", help="decoding threads (default: one per core, at most 4)")


def serve_verb(options: argparse.Namespace) -> int:
    """Serve predictions over HTTP."""
    try:
        from choral.deploy.serve.server import Server, bound_socket, is_loopback, log_to_stderr, server_url
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in ("fastapi", "pydantic", "python_multipart", "starlette", "uvicorn"):
            raise
        raise ConfigError(f"choral serve: {error.name} is not installed; pip install 'choral[serve]'") from error
    if not 0 <= options.port < 65536:
        raise ConfigError(f"--port: {options.port}, expected 0 to 65535")
    limits = _limits_of(options)
    with bound_socket(options.host, options.port) as bound:
        from choral.deploy.bundle.open_predictor import open_predictor
        from choral.runs.memory import retain_freed_memory

        retain_freed_memory()
        predictor = open_predictor(options.target, options.device, options.form, _say)
        if options.max_pixels is None:
            limits = replace(limits, max_pixels=min(limits.max_pixels, predictor.max_pixels))
        address = server_url(bound)
        if not is_loopback(bound):
            _say(
                f"warning: other machines can reach {options.host}, and there is no authentication: put an authenticating "
                "proxy in front, or omit --host"
            )

        def started() -> None:
            stdout.print(
                f"serving {predictor.name} at {address} (Ctrl-C stops)", markup=False, highlight=False, soft_wrap=True
            )
            if options.open:
                import webbrowser

                webbrowser.open(address)

        log_to_stderr(options.quiet)
        predicted = Server(predictor, limits, bound, options.allow_host, started).serve_until_told()
    _say(f"stopped; {predicted:,} image{'' if predicted == 1 else 's'} predicted")
    return 0


def _limits_of(options: argparse.Namespace) -> Limits:
    from choral.deploy.serve.limits import MAX_PIXELS, Limits, parse_size

    return Limits(
        batch_size=options.batch_size,
        wait_ms=options.wait_ms,
        queue=options.queue,
        max_bytes=parse_size(options.max_bytes),
        max_files=options.max_files,
        max_pixels=MAX_PIXELS if options.max_pixels is None else options.max_pixels,
        buffer=parse_size(options.buffer),
        timeout_s=options.timeout_s,
        workers=min(4, os.cpu_count() or 1) if options.workers is None else options.workers,
    )


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
