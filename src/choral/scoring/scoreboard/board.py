"""The scoreboard of a project: every evaluated step, appended and never changed.

    runs/scoreboard/PROJECT/
      entries.jsonl         a line a step: what was evaluated, by which figures, when
      samples/DATA.parquet  keys and labels of the samples of a split, once
      records/ID.parquet    what the step's predictor said of each, from which differences are computed
      progress-*.svg        the figure of each table, drawn by `choral scores`

An entry stands for itself: the run that it is of may be deleted. The same predictions of the same predictor are appended
once, however often and wherever they are evaluated; under a new name of the step the entry takes that name.
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
from choral.ensembles.score_rows import Numbers
from choral.runs.run_dir import is_run
from choral.scoring.stored_predictor import Record, Samples, packed, unpacked

FORMAT = "choral-scores-1"


@dataclass(frozen=True)
class Entry:
    """One evaluated step.

    Attributes:
        id: of the run and of `said`; it stays when the run is renamed.
        said: of the predictor, the samples, and what was said or what it came from.
        step: as `Config.step` says, else the run's name.
        part: "" for one network, else what was added to it: +ensemble, +tta, +learned, +calibrated, +decided (by costs
            or thresholds), +NAME.
        run: that it was evaluated in, a folder beside the scoreboards.
        predictor: its row in `choral score`.
        members: of the run, that were asked.
        split, dataset, data: of the samples; `data` is the fingerprint of exactly these samples with their labels.
        task, classes, samples: what was asked, and how many.
        metrics: as they were when the entry was made.
        minutes: of training, of all members that the predictor needs; None: not known.
        config: `config_hash`.
        date: ISO 8601, UTC.
        record: SHA-256 of the record.
    """

    id: str
    said: str
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
    metrics: Mapping[str, Numbers]
    minutes: float | None
    config: str
    date: str
    record: str

    @classmethod
    def from_json(cls, line: Mapping[str, Any]) -> Entry:
        """Read a line of the journal; KeyError, TypeError or ValueError where it is something else."""
        if line["format"] != FORMAT:
            raise ValueError(f"format {line['format']!r}, expected {FORMAT!r}")
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
        path: of its folder, which need not exist.
    """

    path: Path

    @classmethod
    def find(cls, root: Path, project: str) -> Scoreboard:
        """Return the scoreboard of a project under runs/scoreboard.

        Raises:
            ConfigError: there is none; those that there are are named.
        """
        known = projects_in(root)
        if project not in known:
            there = (
                f" There are: {', '.join(known)}." if known else f" Nothing has been evaluated yet: {root} is empty."
            )
            raise ConfigError(f"{project}: no such project.{did_you_mean(project, known)}{there}")
        return cls(root / project)

    def entries(self) -> tuple[list[Entry], int]:
        """Return the entries in the order in which they were appended, and how many are damaged and left out."""
        lines, damaged = self._journal.read()
        entries = []
        for line in lines:
            try:
                entries.append(Entry.from_json(line))
            except (KeyError, TypeError, ValueError):
                damaged += 1
        return entries, damaged

    def append(self, entry: Entry, record: Record, samples: Samples) -> bool:
        """Append an entry, unless it is there; return whether it was not.

        Args:
            entry: its checksum is filled in here, and its id is that of the same one under another name of the run.
            record, samples: what it said, and of what.

        Raises:
            ChoralError: the disk is full, or the folder is somebody else's.
        """
        there = self.known(entry.run).get(entry.said)
        if there is not None:
            if (there.run, there.step) == (entry.run, entry.step) and self.holds(there):
                return False
            entry = dataclasses.replace(entry, id=there.id)
        columns = {"said": record.predictions, "loss": record.losses}
        content = packed({name: values for name, values in columns.items() if values is not None})
        entry = dataclasses.replace(entry, record=hashlib.sha256(content).hexdigest())
        self._keep(self._samples(entry.data), packed({"key": samples.keys, "label": samples.labels}))
        self._keep(self._record(entry.id), content)
        self._journal.append(lambda lines: [] if entry.to_json() in lines else [entry.to_json()])
        return True

    def known(self, run: str) -> dict[str, Entry]:
        """Return by what they said the entries of a run, and those of runs that are gone: it may be one of these, renamed."""
        entries, _ = self.entries()
        ours = [entry for entry in entries if entry.run == run or not is_run(self.folder_of(entry))]
        return {entry.said: entry for entry in sorted(ours, key=lambda entry: entry.run == run)}

    def folder_of(self, entry: Entry) -> Path:
        """Return the folder of the run that an entry is of; it may have been deleted."""
        return self.path.resolve().parent.parent / entry.run

    def holds(self, entry: Entry) -> bool:
        """Return whether an entry can be compared: whether its record and samples are there and whole."""
        try:
            self.record(entry)
            self.samples(entry)
        except DataError:
            return False
        return True

    def samples(self, entry: Entry) -> Samples:
        """Return the samples that an entry is about.

        Raises:
            DataError: they are missing or damaged.
        """
        path = self._samples(entry.data)
        columns = _read(path)
        if set(columns) == {"key", "label"} and isinstance(columns["key"], list):
            samples = Samples(columns["key"], columns["label"])
            if samples.digest(entry.dataset, entry.split, entry.task, entry.classes) == entry.data:
                return samples
        raise DataError(f"{path}: damaged")

    def record(self, entry: Entry) -> Record:
        """Return what the predictor of an entry said.

        Raises:
            DataError: it is missing, or not what was recorded.
        """
        columns = _read(self._record(entry.id), entry.record)
        return Record(columns["said"], columns.get("loss"))

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


def digest_of(*parts: str) -> str:
    """Return 16 hexadecimal digits for these parts."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def projects_in(root: Path) -> list[str]:
    """Return the projects that have a scoreboard under runs/scoreboard."""
    return sorted(path.parent.name for path in root.glob("*/entries.jsonl"))


def _read(path: Path, sha256: str = "") -> dict[str, Any]:
    try:
        content = path.read_bytes()
        if sha256 and hashlib.sha256(content).hexdigest() != sha256:
            raise ValueError("another checksum than it had")
        return unpacked(content)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(f"{path}: missing or damaged ({error})") from error
