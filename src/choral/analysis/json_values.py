"""Converts dataclasses and arrays to plain JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np


def to_plain_json(value: Any) -> Any:
    """Return dataclasses as dicts, arrays and tuples as lists, NumPy scalars as numbers; NaN and infinities become None."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain_json(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(name): to_plain_json(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain_json(item) for item in value]
    if isinstance(value, np.ndarray):
        items = value.tolist()
        return items if value.dtype.kind != "f" or np.isfinite(value).all() else to_plain_json(items)
    if isinstance(value, np.generic):
        return to_plain_json(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
