"""The table of what is trained: stage, layers, parameters, learning rate."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from choral.models.finetuning import stages_of
from choral.runs.run_dir import write_atomic

_log = logging.getLogger(__name__)
TABLE_FILE = "trained.txt"
_NAME_WIDTH = 11


@dataclass(frozen=True)
class StageRow:
    """One stage of a network."""

    stage: str
    """Its number, or "head"."""
    first: str
    last: str
    """The modules that hold its first and its last parameters."""
    layers: int
    """Modules that hold parameters."""
    parameters: int
    trained: int
    """Parameters among them that the optimizer moves."""
    low_rate: float
    high_rate: float
    """Highest learning rates of the schedule; two where layers of a stage have their own. 0: frozen, or fitted."""


def table_of(model: nn.Module, optimizer: torch.optim.Optimizer, peak_rate: float) -> list[StageRow]:
    """Return a row a stage.

    Args:
        model: the network, not wrapped.
        optimizer: over those of its parameters that are trained.
        peak_rate: highest rate of the schedule, which groups multiply by their `lr_scale`; 0: what is trained is fitted,
            without a step.
    """
    rates = {
        id(parameter): peak_rate * float(group.get("lr_scale", 1.0))
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    parameters = dict(model.named_parameters())
    rows = []
    stages = stages_of(model)
    for number, names in enumerate(stages):
        modules = list(dict.fromkeys(name.rpartition(".")[0] or name for name in names))
        moved = [name for name in names if id(parameters[name]) in rates]
        found = [rates[id(parameters[name])] for name in moved] or [0.0]
        rows.append(
            StageRow(
                stage="head" if number == len(stages) - 1 else str(number),
                first=modules[0],
                last=modules[-1],
                layers=len(modules),
                parameters=sum(parameters[name].numel() for name in names),
                trained=sum(parameters[name].numel() for name in moved),
                low_rate=min(found),
                high_rate=max(found),
            )
        )
    return rows


def tell(rows: Sequence[StageRow], title: str, file: Path) -> None:
    """Show the table: drawn on a terminal, as plain lines of the log elsewhere; at most 80 columns.

    Args:
        rows, title: what is told.
        file: keeps the tables of a run as plain text, each once, however often the run is started.
    """
    lines = plain(rows, title)
    told, text = file.read_text(encoding="utf-8") if file.is_file() else "", "".join(f"{line}\n" for line in lines)
    if text not in told:
        write_atomic(file, f"{told}\n{text}" if told else text)
    console = Console(stderr=True)
    if console.is_terminal:
        console.print(drawn(rows, title), highlight=False)
        return
    for line in lines:
        _log.info("%s", line)


def drawn(rows: Sequence[StageRow], title: str) -> Table:
    """Return the table for a terminal."""
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0), pad_edge=False, show_footer=True)
    for header, footer, right in zip(_HEADERS, _footer(rows), _RIGHT, strict=True):
        table.add_column(header, footer, justify="right" if right else "left", no_wrap=True)
    for row in rows:
        table.add_row(*_cells(row), style="" if row.trained else "dim")
    return table


def plain(rows: Sequence[StageRow], title: str) -> list[str]:
    """Return the table as lines of text, at most 80 columns wide."""
    lines = [_HEADERS, *(_cells(row) for row in rows), _footer(rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(_HEADERS))]

    def line_of(cells: Sequence[str]) -> str:
        aligned = zip(cells, widths, _RIGHT, strict=True)
        return "  ".join(f"{cell:>{width}}" if right else f"{cell:{width}}" for cell, width, right in aligned).rstrip()

    return [title, *(line_of(cells) for cells in lines)]


_HEADERS = ("stage", "modules", "layers", "parameters", "trained", "learning rate")
_RIGHT = (False, False, True, True, True, True)


def _cells(row: StageRow) -> tuple[str, ...]:
    trained, rate = "frozen", "-"
    if row.trained:
        trained = "all" if row.trained == row.parameters else f"{row.trained / row.parameters:.0%}"
        low, high = _rate(row.low_rate), _rate(row.high_rate)
        rate = high if low == high else f"{low} to {high}"
        rate = rate if row.high_rate else "fitted"
    return row.stage, _span(row.first, row.last), str(row.layers), f"{row.parameters:,}", trained, rate


def _footer(rows: Sequence[StageRow]) -> tuple[str, ...]:
    layers, total, trained = (sum(getattr(row, name) for row in rows) for name in ("layers", "parameters", "trained"))
    return "sum", "", str(layers), f"{total:,}", f"{trained / total:.0%}", ""


def _rate(rate: float) -> str:
    digits, _, exponent = f"{rate:.1e}".partition("e")
    return f"{digits.removesuffix('.0')}e{int(exponent)}"


def _span(first: str, last: str) -> str:
    """Return the first two parts of two modules' names, once where they are the same."""
    begin, end = (_short(".".join(name.split(".")[:2])) for name in (first, last))
    return begin if begin == end else f"{begin} .. {end}"


def _short(name: str) -> str:
    """Return a name, its middle left out where it is long."""
    return name if len(name) <= _NAME_WIDTH else f"{name[:4]}..{name[6 - _NAME_WIDTH :]}"
