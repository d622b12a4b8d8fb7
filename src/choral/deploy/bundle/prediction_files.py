"""Prediction files: CSV, JSON lines and Parquet, one row per image, in the order of the images.

Columns of CSV and Parquet:

    image        as it was named
    class        of multiclass, with `probability`, its own, and p_CLASS of each class
    labels       of multilabel, those that apply, with p_LABEL of each label
    value_T      of regression, of each target T, with spread_T, the standard deviation of the members' numbers
    unsure       whether the probability is below what was chosen; only where something was
    set          the classes or labels of the conformal set; only where there are sets
    low_T, high_T   the ends of the conformal interval, empty where it is without end; only where there are intervals
    error        why the image could not be read; then all others are empty

JSON lines hold the whole prediction with each member's vote. Parquet keeps numbers as float32 and sets as lists. In CSV
numbers have as many digits as float32 needs, lists are separated by |, and no cell is taken for a formula by a spreadsheet
(https://owasp.org/www-community/attacks/CSV_Injection): a path that begins like one gets ./ in front of it, which is the same
file, and other text that is no number an apostrophe.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

import numpy as np
import pyarrow as pa

from choral.core.errors import ConfigError
from choral.inference.prediction_types import ClassPrediction, MultilabelPrediction, Prediction, RegressionPrediction
from choral.scoring.policy import PredictionPolicy

_ROWS_A_GROUP = 8192
_FORMULA = re.compile(r"[=+\-@\t\r]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_BETWEEN = "|"
_SHARE = "p_"


class PredictionFormat(Protocol):
    """A file format: batches of predictions are encoded, possibly in several processes, and written in order."""

    def encode(self, predictions: Sequence[Prediction]) -> bytes:
        """Return the encoded rows of at least one prediction."""

    def write(self, file: BinaryIO, encoded: Iterable[bytes]) -> None:
        """Write a file of what `encode` returned, in order."""


def prediction_format(path: Path, policy: PredictionPolicy) -> PredictionFormat:
    """Return the format of a path by its suffix; ConfigError as in `check_output_path`."""
    check_output_path(path)
    return FORMATS[path.suffix.lower()](policy)


def check_output_path(path: Path) -> None:
    """Check that predictions can be written to a path.

    Raises:
        ConfigError: an unknown suffix, a folder, or a folder above it that is not there.
    """
    if path.suffix.lower() not in FORMATS:
        raise ConfigError(f"-o {path}: expected a name that ends with {', '.join(FORMATS)}")
    if path.is_dir():
        raise ConfigError(f"-o {path}: is a folder, expected the name of a file")
    if not path.parent.is_dir():
        raise ConfigError(f"-o {path}: there is no folder {path.parent}")


class JsonLines:
    """One JSON object an image, as `choral predict --json` prints."""

    def __init__(self, policy: PredictionPolicy) -> None:
        pass

    def encode(self, predictions: Sequence[Prediction]) -> bytes:
        """See `PredictionFormat`."""
        lines = [json.dumps(prediction.content(), ensure_ascii=False) + "\n" for prediction in predictions]
        return "".join(lines).encode()

    def write(self, file: BinaryIO, encoded: Iterable[bytes]) -> None:
        """See `PredictionFormat`."""
        for lines in encoded:
            file.write(lines)


class Csv:
    """Comma-separated values: UTF-8, a header, text in double quotes, lines that end with a line feed."""

    def __init__(self, policy: PredictionPolicy) -> None:
        self._schema = _build_schema(policy)
        text = any(_BETWEEN in name for name in policy.classes)
        self._joined = (lambda names: json.dumps(names, ensure_ascii=False)) if text else _BETWEEN.join

    def encode(self, predictions: Sequence[Prediction]) -> bytes:
        """See `PredictionFormat`."""
        rows = _build_table(predictions, self._schema)
        for number, field in enumerate(rows.schema):
            if field.type == pa.list_(pa.string()):
                values = [
                    None if names is None else _escape_formula(self._joined(names))
                    for names in rows[number].to_pylist()
                ]
            elif field.name == "image":
                values = [_escape_formula_path(name) for name in rows[number].to_pylist()]
            elif field.type == pa.string():
                values = [None if text is None else _escape_formula(text) for text in rows[number].to_pylist()]
            else:
                continue
            rows = rows.set_column(number, field.name, pa.array(values, pa.string()))
        return _csv(rows, header=False)

    def write(self, file: BinaryIO, encoded: Iterable[bytes]) -> None:
        """See `PredictionFormat`."""
        header = pa.table({name: pa.array([], pa.string()) for name in self._schema.names})
        file.write(_csv(header, header=True))
        for rows in encoded:
            file.write(rows)


class Parquet:
    """A Parquet file."""

    def __init__(self, policy: PredictionPolicy) -> None:
        self._schema = _build_schema(policy)

    def encode(self, predictions: Sequence[Prediction]) -> bytes:
        """See `PredictionFormat`."""
        rows = _build_table(predictions, self._schema)
        out = io.BytesIO()
        with pa.ipc.new_stream(out, self._schema) as stream:
            stream.write_table(rows)
        return out.getvalue()

    def write(self, file: BinaryIO, encoded: Iterable[bytes]) -> None:
        """See `PredictionFormat`."""
        import pyarrow.parquet as pq

        with pq.ParquetWriter(file, self._schema) as writer:
            held: list[pa.Table] = []
            for data in encoded:
                held.append(pa.ipc.open_stream(data).read_all())
                if sum(map(len, held)) >= _ROWS_A_GROUP:
                    writer.write_table(pa.concat_tables(held))
                    held = []
            if held:
                writer.write_table(pa.concat_tables(held))


FORMATS: Mapping[str, type[JsonLines] | type[Csv] | type[Parquet]] = {
    ".csv": Csv,
    ".jsonl": JsonLines,
    ".parquet": Parquet,
}


def _build_schema(policy: PredictionPolicy) -> pa.Schema:
    text, number, names = pa.string(), pa.float32(), pa.list_(pa.string())
    sets = policy.conformal is not None
    fields: list[tuple[str, pa.DataType]] = [("image", text)]
    if policy.task == "regression":
        kinds = ("value", "spread", *(("low", "high") if sets else ()))
        fields += [(f"{kind}_{name}", number) for name in policy.classes for kind in kinds]
    else:
        one = [("class", text), ("probability", number)]
        fields += [("labels", names)] if policy.task == "multilabel" else one
        fields += [(f"{_SHARE}{name}", number) for name in policy.classes]
        fields += [("unsure", pa.bool_())] if policy.unsure_below is not None else []
        fields += [("set", names)] if sets else []
    return pa.schema([*fields, ("error", text)])


def _build_table(predictions: Sequence[Prediction], schema: pa.Schema) -> pa.Table:
    """Return the rows of predictions of one task."""
    read = [prediction for prediction in predictions if not prediction.error]
    columns: dict[str, Any] = {}
    if read and isinstance(read[0], ClassPrediction):
        columns = _class_columns(cast("list[ClassPrediction]", read), schema)
    elif read and isinstance(read[0], MultilabelPrediction):
        columns = _label_columns(cast("list[MultilabelPrediction]", read))
    elif read:
        columns = _number_columns(cast("list[RegressionPrediction]", read))
    # A row that could not be read takes none of these: -1 takes nothing.
    places = np.full(len(predictions), -1)
    places[[not prediction.error for prediction in predictions]] = np.arange(len(read))
    take = pa.array(places, mask=places < 0)
    arrays = {
        field.name: pa.array(columns.get(field.name, [None] * len(read)), field.type).take(take) for field in schema
    }
    arrays["image"] = pa.array([prediction.image for prediction in predictions], pa.string())
    arrays["error"] = pa.array([prediction.error or None for prediction in predictions], pa.string())
    return pa.table(arrays, schema=schema)


def _class_columns(predictions: Sequence[ClassPrediction], schema: pa.Schema) -> dict[str, Any]:
    shares = np.array([prediction.probabilities for prediction in predictions], np.float32)
    names = [name for name in schema.names if name.startswith(_SHARE)]
    return {
        "class": [prediction.label for prediction in predictions],
        "probability": np.array([prediction.probability for prediction in predictions], np.float32),
        **dict(zip(names, shares.T.copy(), strict=True)),
        "unsure": [prediction.unsure for prediction in predictions],
        "set": [prediction.possible for prediction in predictions],
    }


def _label_columns(predictions: Sequence[MultilabelPrediction]) -> dict[str, Any]:
    names = predictions[0].probabilities or {}
    return {
        "labels": [list(prediction.labels or {}) for prediction in predictions],
        **{f"{_SHARE}{name}": [(prediction.probabilities or {})[name] for prediction in predictions] for name in names},
        "set": [prediction.possible for prediction in predictions],
    }


def _number_columns(predictions: Sequence[RegressionPrediction]) -> dict[str, Any]:
    columns: dict[str, Any] = {}
    for name in predictions[0].values or {}:
        ends = [(prediction.intervals or {}).get(name) or (None, None) for prediction in predictions]
        columns |= {
            f"value_{name}": [(prediction.values or {})[name] for prediction in predictions],
            f"spread_{name}": [(prediction.spreads or {})[name] for prediction in predictions],
            f"low_{name}": [low for low, _ in ends],
            f"high_{name}": [high for _, high in ends],
        }
    return columns


def _csv(rows: pa.Table, header: bool) -> bytes:
    import pyarrow.csv as pacsv

    out = io.BytesIO()
    pacsv.write_csv(rows, out, pacsv.WriteOptions(include_header=header))
    return out.getvalue()


def _escape_formula(text: str) -> str:
    """Return text that no spreadsheet takes for a formula."""
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text


def _escape_formula_path(name: str) -> str:
    """Return a name of the same file that no spreadsheet takes for a formula."""
    return f"./{name}" if _FORMULA.match(name) else name
