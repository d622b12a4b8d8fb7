"""Answers as files: CSV, JSON lines and Parquet, one row an image, in the order of the images.

Columns of CSV and Parquet:

    image        as it was named
    class        of multiclass, with `probability`, its own, and p_CLASS of each class
    labels       of multilabel, those that apply, with p_LABEL of each label
    value_T      of regression, of each target T, with spread_T, the standard deviation of the members' numbers
    unsure       whether the probability is below what was chosen; only where something was
    set          the classes or labels of the conformal set; only where there are sets
    low_T, high_T   the ends of the conformal interval, empty where it is without end; only where there are intervals
    error        why the image could not be read; then all others are empty

JSON lines hold all of an answer, each member's vote, too. Parquet keeps numbers as float32 and sets as lists. In CSV numbers
have as many digits as float32 needs, lists are separated by |, and no cell is taken for a formula by a spreadsheet
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
from choral.inference.prediction_types import Answer, ClassPrediction, MultilabelPrediction, RegressionPrediction
from choral.scoring.policy import PredictionPolicy

_ROWS_A_GROUP = 8192
_FORMULA = re.compile(r"[=+\-@\t\r]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_BETWEEN = "|"
_SHARE = "p_"


class AnswerFormat(Protocol):
    """A kind of file: answers become bytes batch by batch, perhaps in several processes, and these a file."""

    def encode(self, answers: Sequence[Answer]) -> bytes:
        """Return the rows of at least one answer."""

    def write(self, file: BinaryIO, encoded: Iterable[bytes]) -> None:
        """Write a file of what `encode` returned, in order."""


def answer_format(path: Path, answering: PredictionPolicy) -> AnswerFormat:
    """Return the kind of file that a path's suffix means, for the answers of a predictor; ConfigError as `check_suffix`."""
    check_suffix(path)
    return FORMATS[path.suffix.lower()](answering)


def check_suffix(path: Path) -> None:
    """Check that answers can be written to a path.

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

    def __init__(self, answering: PredictionPolicy) -> None:
        pass

    def encode(self, answers: Sequence[Answer]) -> bytes:
        """See `AnswerFormat`."""
        lines = [json.dumps(answer.content(), ensure_ascii=False) + "\n" for answer in answers]
        return "".join(lines).encode()

    def write(self, file: BinaryIO, encoded: Iterable[bytes]) -> None:
        """See `AnswerFormat`."""
        for lines in encoded:
            file.write(lines)


class Csv:
    """Comma-separated values: UTF-8, a header, text in double quotes, lines that end with a line feed."""

    def __init__(self, answering: PredictionPolicy) -> None:
        self._schema = _schema_of(answering)
        text = any(_BETWEEN in name for name in answering.classes)
        self._joined = (lambda names: json.dumps(names, ensure_ascii=False)) if text else _BETWEEN.join

    def encode(self, answers: Sequence[Answer]) -> bytes:
        """See `AnswerFormat`."""
        rows = _table(answers, self._schema)
        for number, field in enumerate(rows.schema):
            if field.type == pa.list_(pa.string()):
                values = [None if names is None else _safe(self._joined(names)) for names in rows[number].to_pylist()]
            elif field.name == "image":
                values = [_safe_path(name) for name in rows[number].to_pylist()]
            elif field.type == pa.string():
                values = [None if text is None else _safe(text) for text in rows[number].to_pylist()]
            else:
                continue
            rows = rows.set_column(number, field.name, pa.array(values, pa.string()))
        return _csv(rows, header=False)

    def write(self, file: BinaryIO, encoded: Iterable[bytes]) -> None:
        """See `AnswerFormat`."""
        header = pa.table({name: pa.array([], pa.string()) for name in self._schema.names})
        file.write(_csv(header, header=True))
        for rows in encoded:
            file.write(rows)


class Parquet:
    """A Parquet file."""

    def __init__(self, answering: PredictionPolicy) -> None:
        self._schema = _schema_of(answering)

    def encode(self, answers: Sequence[Answer]) -> bytes:
        """See `AnswerFormat`."""
        rows = _table(answers, self._schema)
        out = io.BytesIO()
        with pa.ipc.new_stream(out, self._schema) as stream:
            stream.write_table(rows)
        return out.getvalue()

    def write(self, file: BinaryIO, encoded: Iterable[bytes]) -> None:
        """See `AnswerFormat`."""
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


def _schema_of(answering: PredictionPolicy) -> pa.Schema:
    text, number, names = pa.string(), pa.float32(), pa.list_(pa.string())
    sets = answering.conformal is not None
    fields: list[tuple[str, pa.DataType]] = [("image", text)]
    if answering.task == "regression":
        kinds = ("value", "spread", *(("low", "high") if sets else ()))
        fields += [(f"{kind}_{name}", number) for name in answering.classes for kind in kinds]
    else:
        one = [("class", text), ("probability", number)]
        fields += [("labels", names)] if answering.task == "multilabel" else one
        fields += [(f"{_SHARE}{name}", number) for name in answering.classes]
        fields += [("unsure", pa.bool_())] if answering.unsure_below is not None else []
        fields += [("set", names)] if sets else []
    return pa.schema([*fields, ("error", text)])


def _table(answers: Sequence[Answer], schema: pa.Schema) -> pa.Table:
    """Return the rows of answers of one kind."""
    read = [answer for answer in answers if not answer.error]
    columns: dict[str, Any] = {}
    if read and isinstance(read[0], ClassPrediction):
        columns = _class_columns(cast("list[ClassPrediction]", read), schema)
    elif read and isinstance(read[0], MultilabelPrediction):
        columns = _label_columns(cast("list[MultilabelPrediction]", read))
    elif read:
        columns = _number_columns(cast("list[RegressionPrediction]", read))
    # A row that could not be read takes none of these: -1 takes nothing.
    places = np.full(len(answers), -1)
    places[[not answer.error for answer in answers]] = np.arange(len(read))
    take = pa.array(places, mask=places < 0)
    arrays = {
        field.name: pa.array(columns.get(field.name, [None] * len(read)), field.type).take(take) for field in schema
    }
    arrays["image"] = pa.array([answer.image for answer in answers], pa.string())
    arrays["error"] = pa.array([answer.error or None for answer in answers], pa.string())
    return pa.table(arrays, schema=schema)


def _class_columns(answers: Sequence[ClassPrediction], schema: pa.Schema) -> dict[str, Any]:
    shares = np.array([answer.probabilities for answer in answers], np.float32)
    names = [name for name in schema.names if name.startswith(_SHARE)]
    return {
        "class": [answer.label for answer in answers],
        "probability": np.array([answer.probability for answer in answers], np.float32),
        **dict(zip(names, shares.T.copy(), strict=True)),
        "unsure": [answer.unsure for answer in answers],
        "set": [answer.possible for answer in answers],
    }


def _label_columns(answers: Sequence[MultilabelPrediction]) -> dict[str, Any]:
    names = answers[0].probabilities or {}
    return {
        "labels": [list(answer.labels or {}) for answer in answers],
        **{f"{_SHARE}{name}": [(answer.probabilities or {})[name] for answer in answers] for name in names},
        "set": [answer.possible for answer in answers],
    }


def _number_columns(answers: Sequence[RegressionPrediction]) -> dict[str, Any]:
    columns: dict[str, Any] = {}
    for name in answers[0].values or {}:
        ends = [(answer.intervals or {}).get(name) or (None, None) for answer in answers]
        columns |= {
            f"value_{name}": [(answer.values or {})[name] for answer in answers],
            f"spread_{name}": [(answer.spreads or {})[name] for answer in answers],
            f"low_{name}": [low for low, _ in ends],
            f"high_{name}": [high for _, high in ends],
        }
    return columns


def _csv(rows: pa.Table, header: bool) -> bytes:
    import pyarrow.csv as pacsv

    out = io.BytesIO()
    pacsv.write_csv(rows, out, pacsv.WriteOptions(include_header=header))
    return out.getvalue()


def _safe(text: str) -> str:
    """Return text that no spreadsheet takes for a formula."""
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text


def _safe_path(name: str) -> str:
    """Return a name of the same file that no spreadsheet takes for a formula."""
    return f"./{name}" if _FORMULA.match(name) else name
