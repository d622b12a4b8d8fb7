"""Checks for NaN and infinity: all ranks notice them before an update, and distinguish them from fp16 overflows."""

from __future__ import annotations

import torch
from torch import Tensor

from choral.core.errors import ChoralError
from choral.core.process_group import Runtime

MAX_ATTEMPTS = 24
"""Attempts at one fp16 step, each with half the loss scale of the one before: from 2^16 down to 2^-8."""


class NotFinite(ChoralError):
    """A loss or gradient is infinite or NaN. All ranks raise it, before the update."""


def check_loss(runtime: Runtime, loss: Tensor, step: int) -> None:
    """Raise on all ranks if the loss of any rank is not finite.

    Args:
        runtime: this rank; every rank must call.
        loss: 0-d, this rank's share.
        step: for the message.

    Raises:
        NotFinite: naming the step and the ranks.
    """
    ranks = find_non_finite_ranks(runtime, loss)
    if ranks:
        named = ", ".join(str(rank) for rank in ranks)
        raise NotFinite(
            f"step {step}: the loss on rank {named} is not finite; no update was made. "
            "Lower train.lr, lengthen train.warmup_epochs, or look at the data"
        )


def find_non_finite_ranks(runtime: Runtime, loss: Tensor) -> list[int]:
    """Return the ranks whose loss (0-d) is infinite or NaN, the same list on all ranks; every rank must call."""
    flags = torch.zeros(runtime.world_size, device=runtime.device)
    flags[runtime.rank] = ~torch.isfinite(loss)
    return [int(rank) for rank in runtime.sum(flags).nonzero().flatten().tolist()]


def check_gradient(norm: Tensor, loss: Tensor, step: int) -> None:
    """Raise if the norm of the all-reduced gradient, which is the same on all ranks, is not finite.

    Raises:
        NotFinite: naming the step.
    """
    if not bool(torch.isfinite(norm)):
        raise NotFinite(
            f"step {step}: the gradient is not finite (loss: {loss.item():g}); no update was made. "
            "Lower train.lr, or lengthen train.warmup_epochs"
        )
