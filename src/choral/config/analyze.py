"""The settings of `choral probe` and `choral analyze`."""

from __future__ import annotations

from choral.config.fields import NonBinding, PositiveInt
from choral.config.section import Section


class AnalyzeConfig(Section, frozen=True):
    """Settings of `choral probe` and `choral analyze`. They do not change a run."""

    probe_samples: NonBinding[PositiveInt] = 2000
    """Maximum number of samples of a split that are perturbed and predicted, chosen by a hash of their keys. With thousands
    of classes fewer are used, so that their predictions stay below 256 MiB."""
