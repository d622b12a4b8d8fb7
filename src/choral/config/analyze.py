"""How a trained run is looked at."""

from __future__ import annotations

from dataclasses import dataclass

from choral.config.fields import check, tuning


@dataclass(frozen=True, kw_only=True)
class AnalyzeConfig:
    """What `choral probe` and `choral analyze` go by. Nothing of it changes a run."""

    probe_samples: int = tuning(2000)
    """Samples of a split that are asked about with changed images, at most, chosen by a hash of their keys. With
    thousands of classes fewer, so that what is said about them stays below 256 MiB."""

    def __post_init__(self) -> None:
        check(self.probe_samples > 0, "analyze.probe_samples", "expected at least 1")
