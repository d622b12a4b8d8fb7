"""Exported files of a bundle, and the comparison of all forms on a whole split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from choral.core.errors import ChoralError

if TYPE_CHECKING:
    from choral.deploy.bundle.verify_split import SplitCheck


def check_forms(formats: Sequence[str], precisions: Sequence[str]) -> None:
    """Raise ConfigError, before anything is written, if a format cannot be written; see `added_forms.check_formats`."""
    if formats or precisions:
        from choral.deploy.bundle.added_forms import check_formats  # torch

        check_formats(formats, precisions)


def add_forms(
    path: Path, formats: Sequence[str], precisions: Sequence[str], data: str, progress: Console
) -> dict[str, Any]:
    """Add exported files to a bundle, and return the facts about each.

    Raises:
        ConfigError, DataError, ChoralError: as `choral.deploy.bundle.added_forms.add_forms`, or writing failed.
    """
    from safetensors import SafetensorError

    from choral.deploy.bundle.added_forms import add_forms as added  # torch

    def report(text: str) -> None:
        progress.print(text, markup=False, highlight=False, soft_wrap=True)

    try:
        return added(path, formats, precisions, data, report)
    except (OSError, SafetensorError) as error:
        raise ChoralError(f"{path}: exporting failed: {error}; the bundle is unchanged") from error


def print_forms(path: Path, forms: Mapping[str, Any], console: Console) -> None:
    """Print the exported files of a bundle, and the cost of lower precision."""
    for name, facts in forms.items():
        line = f"{path / name}: {facts['precision']}, {facts['megabytes']:.1f} MB"
        console.print(line, highlight=False, markup=False, soft_wrap=True)
        if facts["precision"] != "fp32":
            for line in _cost(facts.get("measured")):
                console.print(f"  {line}", highlight=False, markup=False, soft_wrap=True)


def _cost(measured: Mapping[str, Any] | None) -> list[str]:
    if measured is None:
        return ["its cost was not measured: give the validation data with --data FOLDER"]
    value, low, high = measured["difference"]
    lines = [
        f"{measured['metric']} on {measured['split']} ({measured['n']} samples) {measured['value']:.4f}, full precision "
        f"{measured['reference']:.4f}: {value:+.4f} (95 % interval {low:+.4f} to {high:+.4f})"
    ]
    alike = "" if measured["same"] is None else f"; {measured['same']} of {measured['n']} equal decisions"
    return [*lines, f"largest difference of a probability {measured['largest']:.2g}{alike}"]


def verify_split(
    path: Path, split: str, data: str, run: str, device: str, tolerance: float | None, progress: Console
) -> SplitCheck:
    """Predict a whole split with every form of a bundle and with its run, and compare."""
    from choral.deploy.bundle.verify_split import verify_split as checked  # torch

    found = checked(path, split, data, run, device, tolerance)
    if found.why:
        line = f"compared with the bundle's own models: {found.why}"
        progress.print(line, markup=False, highlight=False, soft_wrap=True)
    return found


def print_split(check: SplitCheck, console: Console) -> None:
    """Print the comparison of each form on a split."""
    table = Table(box=None, pad_edge=False)
    for heading in (f"{check.split} ({check.n})", f"largest difference from {check.reference}", "equal decisions", ""):
        table.add_column(heading)
    for row in check.rows:
        alike = "" if row.same is None else f"{row.same} of {check.n}"
        within = row.largest <= check.tolerance and row.same in (None, check.n)
        verdict = (
            "equal" if within else f"NOT equal (at most {check.tolerance:.0e})" if row.exact else "lower precision"
        )
        table.add_row(row.form, f"{row.largest:.1e}", alike, verdict)
    console.print(table)
