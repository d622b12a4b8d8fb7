"""The table of trainable parameters: stage, layers, parameters, learning rate."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from choral.models.finetuning import list_stages
from choral.runs.run_dir import write_atomic

_log = logging.getLogger(__name__)
TABLE_FILE = "trained.txt"
_NAME_WIDTH = 11


@dataclass(frozen=True)
class StageRow:
    """One stage of a network."""

    stage: str
    """The number of the stage, or "head"."""
    first: str
    last: str
    """The modules with its first and its last parameters."""
    layers: int
    """Number of modules with parameters."""
    parameters: int
    trained: int
    """Number of parameters that the optimizer updates."""
    low_rate: float
    high_rate: float
    """Smallest and largest peak learning rate of its layers. 0: frozen, or fitted without optimizer steps."""


def build_table(model: nn.Module, optimizer: torch.optim.Optimizer, peak_rate: float) -> list[StageRow]:
    """Return one row per stage.

    Args:
        model: the network, not wrapped.
        optimizer: of its trained parameters.
        peak_rate: the peak learning rate of the schedule, which parameter groups multiply by their `lr_scale`; 0: the
            head is fitted without optimizer steps.
    """
    rates = {
        id(parameter): peak_rate * float(group.get("lr_scale", 1.0))
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    parameters = dict(model.named_parameters())
    rows = []
    stages = list_stages(model)
    for number, names in enumerate(stages):
        modules = list(dict.fromkeys(name.rpartition(".")[0] or name for name in names))
        trained = [name for name in names if id(parameters[name]) in rates]
        stage_rates = [rates[id(parameters[name])] for name in trained] or [0.0]
        rows.append(
            StageRow(
                stage="head" if number == len(stages) - 1 else str(number),
                first=modules[0],
                last=modules[-1],
                layers=len(modules),
                parameters=sum(parameters[name].numel() for name in names),
                trained=sum(parameters[name].numel() for name in trained),
                low_rate=min(stage_rates),
                high_rate=max(stage_rates),
            )
        )
    return rows


def log_table(rows: Sequence[StageRow], title: str, file: Path) -> None:
    """Print the table on a terminal, or else write it to the log; at most 80 columns wide.

    Args:
        rows, title: of the table.
        file: a text file that collects the tables of a run; a table that it already contains is not appended again.
    """
    lines = render_text(rows, title)
    existing = file.read_text(encoding="utf-8") if file.is_file() else ""
    text = "".join(f"{line}\n" for line in lines)
    if text not in existing:
        write_atomic(file, f"{existing}\n{text}" if existing else text)
    console = Console(stderr=True)
    if console.is_terminal:
        console.print(render_rich(rows, title), highlight=False)
        return
    for line in lines:
        _log.info("%s", line)


def render_rich(rows: Sequence[StageRow], title: str) -> Table:
    """Return the table for a terminal; frozen stages are dimmed."""
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0), pad_edge=False, show_footer=True)
    for header, footer, right in zip(_HEADERS, _footer(rows), _RIGHT, strict=True):
        table.add_column(header, footer, justify="right" if right else "left", no_wrap=True)
    for row in rows:
        table.add_row(*_cells(row), style="" if row.trained else "dim")
    return table


def render_text(rows: Sequence[StageRow], title: str) -> list[str]:
    """Return the table as lines of text, at most 80 columns wide."""
    lines = [_HEADERS, *(_cells(row) for row in rows), _footer(rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(_HEADERS))]

    def align(cells: Sequence[str]) -> str:
        columns = zip(cells, widths, _RIGHT, strict=True)
        return "  ".join(f"{cell:>{width}}" if right else f"{cell:{width}}" for cell, width, right in columns).rstrip()

    return [title, *(align(cells) for cells in lines)]


_HEADERS = ("stage", "modules", "layers", "parameters", "trained", "learning rate")
_RIGHT = (False, False, True, True, True, True)


def _cells(row: StageRow) -> tuple[str, ...]:
    trained, rate = "frozen", "-"
    if row.trained:
        trained = "all" if row.trained == row.parameters else f"{row.trained / row.parameters:.0%}"
        low, high = _format_rate(row.low_rate), _format_rate(row.high_rate)
        rate = high if low == high else f"{low} to {high}"
        rate = rate if row.high_rate else "fitted"
    return row.stage, _module_range(row.first, row.last), str(row.layers), f"{row.parameters:,}", trained, rate


def _footer(rows: Sequence[StageRow]) -> tuple[str, ...]:
    layers, total, trained = (sum(getattr(row, name) for row in rows) for name in ("layers", "parameters", "trained"))
    return "sum", "", str(layers), f"{total:,}", f"{trained / total:.0%}", ""


def _format_rate(rate: float) -> str:
    digits, _, exponent = f"{rate:.1e}".partition("e")
    return f"{digits.removesuffix('.0')}e{int(exponent)}"


def _module_range(first: str, last: str) -> str:
    """Return "FIRST .. LAST" with the first two components of each name, or one name if they are equal."""
    begin, end = (_abbreviate(".".join(name.split(".")[:2])) for name in (first, last))
    return begin if begin == end else f"{begin} .. {end}"


def _abbreviate(name: str) -> str:
    """Return a name, without its middle if it is long."""
    return name if len(name) <= _NAME_WIDTH else f"{name[:4]}..{name[6 - _NAME_WIDTH :]}"
