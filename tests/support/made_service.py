"""Services on a free port of this machine: a predictor that is made up, or a real one, behind the real server."""

from __future__ import annotations

import io
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from choral.deploy.bundle.engine import EnsemblePredictions
from choral.deploy.serve.batching import Predicting, Prepared
from choral.deploy.serve.limits import Limits
from choral.deploy.serve.server import Server, bound_socket, server_url
from choral.inference.prediction_types import Prediction
from choral.scoring.apply_policy import apply_policy, build_default_policy
from choral.scoring.policy import Conformal, PredictionPolicy

CLASSES = {
    "multiclass": ("red", "green", "<b>blue</b>"),
    "multilabel": ("red", "green", "<b>blue</b>"),
    "regression": ("mean of red", "mean of green"),
}


class MadePredictor:
    """Says which colour an image has. Its members disagree a little; it asks slowly, or fails, if it is told to.

    Attributes:
        sizes: of the batches that it was asked about.
        pause_s: that a batch takes.
        error: that it raises.
        gate: cleared, it waits in the middle of a batch until it is set.
    """

    def __init__(self, task: str = "multiclass", members: Sequence[str] = ("first", "second", "third")) -> None:
        self.name = "colours"
        policy = build_default_policy(task, CLASSES[task], members, ["identity"])
        if task == "regression":
            conformal = Conformal("absolute", 0.9, (20.0, float("inf")), (50, 50))
            self.policy: PredictionPolicy = replace(policy, of="mean", conformal=conformal, fitted_on=_FITTED)
        else:
            score = "label" if task == "multilabel" else "lac"
            conformal = Conformal(score, 0.9, (0.75,) * (3 if task == "multilabel" else 1), (50,))
            unsure = None if task == "multilabel" else 0.6
            self.policy = replace(policy, of="soft", conformal=conformal, unsure_below=unsure, fitted_on=_FITTED)
        self.sizes: list[int] = []
        self.pause_s, self.error = 0.0, ""
        self.gate = threading.Event()
        self.gate.set()

    @property
    def task(self) -> str:
        return self.policy.task

    @property
    def classes(self) -> tuple[str, ...]:
        return self.policy.classes

    @property
    def members(self) -> tuple[str, ...]:
        return self.policy.members

    def prepare(self, image: NDArray[np.uint8]) -> Prepared:
        rows, columns = (np.linspace(0, side - 1, 8).astype(int) for side in image.shape[:2])
        return (np.ascontiguousarray(image[rows][:, columns]),)

    def predict_batch(self, prepared: Sequence[Prepared]) -> EnsemblePredictions:
        self.sizes.append(len(prepared))
        time.sleep(self.pause_s)
        assert self.gate.wait(60)
        if self.error:
            raise RuntimeError(self.error)
        colours = np.stack([images[0] for images in prepared]).mean((1, 2), dtype=np.float64)
        own = np.stack([self._said(colours, 0.6 + 0.4 * number) for number in range(len(self.members))])
        return EnsemblePredictions(own.astype(np.float32), self.policy.combine(own.astype(np.float32)))

    def _said(self, colours: NDArray[np.float64], scale: float) -> NDArray[np.float64]:
        if self.task == "regression":
            return colours[:, :2] + scale
        if self.task == "multilabel":
            return 1 / (1 + np.exp(-scale * (colours - 128) / 25))
        scores = np.exp(scale * colours / 40)
        return np.asarray(scores / scores.sum(1, keepdims=True))

    def build_predictions(self, names: Sequence[str], predicted: EnsemblePredictions) -> list[Prediction]:
        return apply_policy(self.policy, names, predicted.by_member, predicted.combined)


_FITTED: dict[str, Any] = {"split": "val", "samples": 50, "sha256": ""}


def picture(colour: tuple[int, int, int] = (200, 40, 30), side: int = 40, kind: str = "PNG", **options: Any) -> bytes:
    """Return an encoded image of about one colour."""
    noise = np.random.default_rng(sum(colour) + side).integers(-20, 20, (side, side, 3))
    file = io.BytesIO()
    Image.fromarray(np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)).save(file, kind, **options)
    return file.getvalue()


class Running:
    """A service that runs in a thread of this process.

    Attributes:
        server: whose `should_exit` ends it.
        address: such as http://127.0.0.1:40000.
        port: of it.
        client: that asks it; several threads may use it.
    """

    def __init__(self, server: Server, address: str) -> None:
        self.server, self.address = server, address
        self.port = int(address.rsplit(":", 1)[1])
        self.client = httpx.Client(base_url=address, timeout=60, verify=False)  # no certificates need to be read

    def connect(self) -> socket.socket:
        """Return a plain connection to it, for requests that no client library would send."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)


@contextmanager
def running(predictor: Predicting, hosts: Sequence[str] = (), **limits: Any) -> Iterator[Running]:
    """Let a predictor answer on a free port until the end of the block."""
    listening = threading.Event()
    with bound_socket("127.0.0.1", 0) as bound:
        server = Server(predictor, Limits(**limits), bound, hosts, listening.set)
        thread = threading.Thread(target=server.serve_until_told)
        thread.start()
        try:
            assert listening.wait(20)
            service = Running(server, server_url(bound))
            with service.client:
                yield service
        finally:
            if isinstance(predictor, MadePredictor):
                predictor.gate.set()  # a test that failed in the middle must not wait for what it held
            server.should_exit = True
            thread.join(60)
            assert not thread.is_alive()
