"""Numbers that are not numbers: noticed by all ranks before an update, told apart from fp16's overflows."""

from __future__ import annotations

import torch
from torch import Tensor

from choral.core.errors import ChoralError
from choral.core.process_group import Runtime

SKIPS_IN_A_ROW = 24
"""Attempts at one step, each with half the loss scale of the one before: from 2^16 down to 2^-8."""


class NotFinite(ChoralError):
    """A loss or gradient was infinite or not a number; raised on all ranks alike, before the update."""


def check_loss(run: Runtime, loss: Tensor, step: int) -> None:
    """Raise on all ranks if the loss of any is not finite.

    Args:
        run: of this rank; all must call it.
        loss: 0-d, this rank's share.
        step: for the message.

    Raises:
        NotFinite: naming the step and the ranks.
    """
    ranks = ranks_not_finite(run, loss)
    if ranks:
        named = ", ".join(str(rank) for rank in ranks)
        raise NotFinite(
            f"step {step}: the loss on rank {named} is not finite; no update was made. "
            "Lower train.lr, lengthen train.warmup_epochs, or look at the data"
        )


def ranks_not_finite(run: Runtime, loss: Tensor) -> list[int]:
    """Return the ranks whose loss (0-d) is infinite or not a number, the same on all of them; all must call it."""
    flags = torch.zeros(run.world_size, device=run.device)
    flags[run.rank] = ~torch.isfinite(loss)
    return [int(rank) for rank in run.sum(flags).nonzero().flatten().tolist()]


def check_gradient(norm: Tensor, loss: Tensor, step: int) -> None:
    """Raise if the norm of a gradient that ranks have summed, so that all hold the same, is not finite.

    Raises:
        NotFinite: naming the step.
    """
    if not bool(torch.isfinite(norm)):
        raise NotFinite(
            f"step {step}: the gradient is not finite (loss: {loss.item():g}); no update was made. "
            "Lower train.lr, or lengthen train.warmup_epochs"
        )
