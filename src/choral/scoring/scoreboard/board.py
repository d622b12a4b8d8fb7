"""The scoreboard of a project on disk: every evaluated step, appended and never changed.

    runs/scoreboard/PROJECT/
      entries.jsonl         one line per step: what was evaluated, with which metrics, when
      samples/DATA.parquet  keys and labels of the samples of a split, stored once
      records/ID.parquet    the predictions of the step, from which paired differences are computed
      progress-*.svg, .png  the figure of each table, drawn by `choral scores`

An entry remains valid after its run is deleted. Equal predictions of the same predictor are appended once, however often and
wherever they are evaluated; if the step is renamed, the entry takes the new name.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from choral.core import files
from choral.core.errors import ChoralError, ConfigError, DataError, did_you_mean
from choral.core.journal import Journal
from choral.ensembles.score_rows import IntervalDict
from choral.runs.run_dir import is_run_dir
from choral.scoring.stored_predictor import StoredPredictions, StoredSamples, read_parquet_bytes, write_parquet_bytes

FORMAT = "choral-scores-1"


@dataclass(frozen=True)
class Entry:
    """One evaluated step.

    Attributes:
        id: hash of the run and of `content_id`; it stays when the run is renamed.
        content_id: hash of the predictor's name, the samples, and the predictions or their provenance.
        step: `Config.step`, or the run's name where that is empty.
        part: "" for a single model, else what was added to it: +ensemble, +tta, +learned, +calibrated, +decided (by costs
            or thresholds), +NAME.
        run: name of the run, a directory beside the scoreboards.
        predictor: name of the row in `choral score`.
        members: of the run that was evaluated.
        split, dataset, data: of the samples; `data` is the fingerprint of exactly these samples with their labels.
        task, classes, samples: of the ledger; `samples` is a count.
        metrics: as they were when the entry was made.
        minutes: training time of all members that the predictor needs; None: unknown.
        config: `config_hash`.
        date: ISO 8601, UTC.
        record: SHA-256 of the stored predictions.
    """

    id: str
    content_id: str
    step: str
    part: str
    run: str
    predictor: str
    members: tuple[str, ...]
    split: str
    dataset: str
    data: str
    task: str
    classes: tuple[str, ...]
    samples: int
    metrics: Mapping[str, IntervalDict]
    minutes: float | None
    config: str
    date: str
    record: str

    @classmethod
    def from_json(cls, line: Mapping[str, Any]) -> Entry:
        """Read a line of the journal; raises KeyError, TypeError or ValueError on anything else."""
        if line["format"] != FORMAT:
            raise ValueError(f"format {line['format']!r}, expected {FORMAT!r}")
        # Earlier versions wrote content_id as "said".
        line = {**line, "content_id": line["content_id"] if "content_id" in line else line["said"]}
        values = {item.name: line[item.name] for item in dataclasses.fields(cls)}
        values["members"], values["classes"] = tuple(values["members"]), tuple(values["classes"])
        float(values["minutes"] or 0)
        for numbers in values["metrics"].values():
            float(numbers["value"]) + float(numbers["low"]) + float(numbers["high"])
        return cls(**values)

    def to_json(self) -> dict[str, Any]:
        """Return the line of the journal."""
        return {"format": FORMAT, **asdict(self)}


@dataclass(frozen=True)
class Scoreboard:
    """The entries of one project.

    Attributes:
        path: its directory, which need not exist.
    """

    path: Path

    @classmethod
    def find(cls, root: Path, project: str) -> Scoreboard:
        """Return the scoreboard of a project under runs/scoreboard.

        Raises:
            ConfigError: there is no such project; the existing ones are listed.
        """
        projects = list_projects(root)
        if project not in projects:
            existing = f" There are: {', '.join(projects)}."
            hint = existing if projects else f" Nothing has been evaluated yet: {root} is empty."
            raise ConfigError(f"{project}: no such project.{did_you_mean(project, projects)}{hint}")
        return cls(root / project)

    def entries(self) -> tuple[list[Entry], int]:
        """Return the entries in the order they were appended in, and the number of damaged ones, which are left out."""
        lines, damaged = self._journal.read()
        entries = []
        for line in lines:
            try:
                entries.append(Entry.from_json(line))
            except (KeyError, TypeError, ValueError):
                damaged += 1
        return entries, damaged

    def append(self, entry: Entry, record: StoredPredictions, samples: StoredSamples) -> bool:
        """Append an entry unless it exists; return whether it was appended.

        Args:
            entry: the checksum is filled in here; if the run was renamed, the id of the existing entry is kept.
            record, samples: the predictions, and the samples that they belong to.

        Raises:
            ChoralError: the disk is full, or the directory is not writable.
        """
        existing = self.entries_of_run(entry.run).get(entry.content_id)
        if existing is not None:
            if (existing.run, existing.step) == (entry.run, entry.step) and self.is_intact(existing):
                return False
            entry = dataclasses.replace(entry, id=existing.id)
        columns = {"prediction": record.predictions, "loss": record.losses}
        content = write_parquet_bytes({name: values for name, values in columns.items() if values is not None})
        entry = dataclasses.replace(entry, record=hashlib.sha256(content).hexdigest())
        self._keep(self._samples(entry.data), write_parquet_bytes({"key": samples.keys, "label": samples.labels}))
        self._keep(self._record(entry.id), content)
        self._journal.append(lambda lines: [] if entry.to_json() in lines else [entry.to_json()])
        return True

    def entries_of_run(self, run: str) -> dict[str, Entry]:
        """Return the entries of a run by their `content_id`.

        Entries of runs that no longer exist are included: the run may be one of these, renamed.
        """
        entries, _ = self.entries()
        candidates = [entry for entry in entries if entry.run == run or not is_run_dir(self.run_path(entry))]
        return {entry.content_id: entry for entry in sorted(candidates, key=lambda entry: entry.run == run)}

    def run_path(self, entry: Entry) -> Path:
        """Return the directory of an entry's run, which may have been deleted."""
        return self.path.resolve().parent.parent / entry.run

    def is_intact(self, entry: Entry) -> bool:
        """Return whether an entry can be compared: its predictions and samples exist and match their checksums."""
        try:
            self.record(entry)
            self.samples(entry)
        except DataError:
            return False
        return True

    def samples(self, entry: Entry) -> StoredSamples:
        """Return the samples that an entry was evaluated on.

        Raises:
            DataError: the file is missing or damaged.
        """
        path = self._samples(entry.data)
        columns = _read(path)
        if set(columns) == {"key", "label"} and isinstance(columns["key"], list):
            samples = StoredSamples(columns["key"], columns["label"])
            if samples.digest(entry.dataset, entry.split, entry.task, entry.classes) == entry.data:
                return samples
        raise DataError(f"{path}: damaged")

    def record(self, entry: Entry) -> StoredPredictions:
        """Return the predictions of an entry.

        Raises:
            DataError: the file is missing, or its checksum is not the recorded one.
        """
        columns = _read(self._record(entry.id), entry.record)
        predictions = columns["prediction"] if "prediction" in columns else columns["said"]  # of earlier versions
        return StoredPredictions(predictions, columns.get("loss"))

    @property
    def _journal(self) -> Journal:
        return Journal(self.path / "entries.jsonl")

    def _record(self, identity: str) -> Path:
        return self.path / "records" / f"{identity}.parquet"

    def _samples(self, data: str) -> Path:
        return self.path / "samples" / f"{data}.parquet"

    def _keep(self, path: Path, content: bytes) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            files.write_atomic(path, content)
        except OSError as error:
            raise ChoralError(f"{path}: cannot be written: {error.strerror or error}") from error


def compute_id(*parts: str) -> str:
    """Return the first 16 hexadecimal digits of a hash of these parts."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def list_projects(root: Path) -> list[str]:
    """Return the projects that have a scoreboard under runs/scoreboard."""
    return sorted(path.parent.name for path in root.glob("*/entries.jsonl"))


def _read(path: Path, sha256: str = "") -> dict[str, Any]:
    try:
        content = path.read_bytes()
        if sha256 and hashlib.sha256(content).hexdigest() != sha256:
            raise ValueError("the checksum differs from the recorded one")
        return read_parquet_bytes(content)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(f"{path}: missing or damaged ({error})") from error
