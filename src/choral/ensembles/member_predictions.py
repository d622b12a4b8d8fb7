"""Who is heard: members of a ledger, each under one view or as the mean over several, and members from elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from choral.core.errors import ConfigError, did_you_mean
from choral.ensembles.external_predictions import ExternalPredictions
from choral.ensembles.rules import over_views, soft
from choral.inference.ledger import Ledger
from choral.inference.views import expand

LEARNED = "learned"
"""Asks for weights of views that are learned on validation data."""


@dataclass(frozen=True)
class MemberPredictions:
    """Predictions of several members about the same samples, read block by block.

    Attributes:
        ledger: that has keys and labels.
        own: its members that are heard.
        views: of the ledger; the mean over them is what a member says.
        others: that have joined.
        view_weights: of the views in that mean; none: all alike.
    """

    ledger: Ledger
    own: tuple[str, ...]
    views: tuple[str, ...]
    others: tuple[ExternalPredictions, ...] = ()
    view_weights: tuple[float, ...] = ()

    @property
    def members(self) -> tuple[str, ...]:
        """Names, in the order of the stacks."""
        return (*self.own, *(other.name for other in self.others))

    @property
    def task(self) -> str:
        """Of the predictions."""
        return self.ledger.meta.task

    def blocks(self) -> Iterator[tuple[NDArray[Any], NDArray[np.float32]]]:
        """Yield labels, as the ledger has them, and (members, n, classes) float32 predictions of consecutive samples."""
        labels, start = self.ledger.labels, 0
        for views in zip(*(self.ledger.blocks(view, self.own) for view in self.views), strict=True):
            stack = views[0] if len(views) == 1 else over_views(views, self.view_weights)
            rows = slice(start, start + stack.shape[1])
            if self.others:
                stack = np.concatenate([stack, [other.predictions[rows] for other in self.others]])
            yield labels[rows], stack
            start = rows.stop


@dataclass(frozen=True)
class ViewPredictions(MemberPredictions):
    """The same predictions the other way round: each view says what its members say on average, as if it were a member."""

    @property
    def members(self) -> tuple[str, ...]:
        """The views, in the order of the stacks."""
        return self.views

    def blocks(self) -> Iterator[tuple[NDArray[Any], NDArray[np.float32]]]:
        """Yield labels and (views, n, classes) float32 predictions of consecutive samples."""
        labels, start = self.ledger.labels, 0
        for views in zip(*(map(soft, self.ledger.blocks(view, self.own)) for view in self.views), strict=True):
            rows = slice(start, start + len(views[0]))
            yield labels[rows], np.stack(views)
            start = rows.stop


def chosen_members(ledger: Ledger, wanted: Sequence[str]) -> tuple[str, ...]:
    """Return the members of a ledger that are wanted, in its own order; none: all.

    Raises:
        ConfigError: there is no such member; the nearest is shown.
    """
    for name in wanted:
        if name not in ledger.members:
            near = did_you_mean(name, ledger.members)
            raise ConfigError(
                f"--members: no member '{name}' in {ledger.path}.{near} It has: {', '.join(ledger.members)}"
            )
    return tuple(name for name in ledger.members if name in wanted) if wanted else ledger.members


def chosen_views(ledger: Ledger, wanted: Sequence[str]) -> tuple[str, ...]:
    """Return the views that are wanted; none: the average over views where there is one, else the identity.

    Args:
        ledger: that has them.
        wanted: names in any spelling that means these views, or LEARNED alone, which is returned.

    Raises:
        ConfigError: the ledger holds no such view, or the average is to be averaged with what it contains.
    """
    if LEARNED in wanted:
        if len(wanted) > 1:
            raise ConfigError(f"--views: {LEARNED} chooses among all kept views; name it alone")
        return (LEARNED,)
    wanted = [name for item in wanted for name in ((item,) if item in (*ledger.views, "tta") else expand(item))]
    usual = next(name for name in ("tta", "identity", ledger.views[0]) if name in ledger.views)
    for name in wanted:
        if name not in ledger.views:
            kept = "" if name == "tta" else "; `choral evaluate` keeps single views with evaluate.keep_views=true"
            raise ConfigError(f"--views: {ledger.path} holds no view '{name}', only {', '.join(ledger.views)}{kept}")
    if "tta" in wanted and len(wanted) > 1:
        raise ConfigError("--views: tta is a mean over views already; name it alone, or the views one by one")
    return tuple(dict.fromkeys(wanted)) or (usual,)
