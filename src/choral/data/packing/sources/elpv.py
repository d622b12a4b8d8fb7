"""The demo data: 2,624 electroluminescence images of solar cells, from the Python package elpv-dataset.

As in Deitsch et al. 2019, a cell is defective if its defect probability is at least 0.5, and a quarter of the cells,
stratified by class and module type, is the test split.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path

import pyarrow as pa

from choral.core.errors import ConfigError, DataError
from choral.data.packing.sources.base import FileReader, ImageSource

_CITATION = (
    "Deitsch, S. et al. (2019): Automatic classification of defective photovoltaic module cells in electroluminescence "
    "images. Solar Energy 185, 455-468. https://doi.org/10.1016/j.solener.2019.02.067"
)


def open_elpv() -> ImageSource:
    """Return the source; classes functional and defective, metadata probability (of a defect) and type (mono, poly).

    Raises:
        ConfigError: the package is not installed.
        DataError: files of the package are missing or malformed.
    """
    spec = importlib.util.find_spec("elpv_dataset")  # not imported: its loader would read all images
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError("elpv: the Python package elpv-dataset is not installed: run `pip install elpv-dataset`")
    data = Path(spec.submodule_search_locations[0]) / "data"
    listing = data / "labels.csv"  # separated by spaces, despite its name
    try:
        rows = [line.split() for line in listing.read_text().splitlines() if line.strip()]
        paths = [row[0] for row in rows]
        probabilities = [float(row[1]) for row in rows]
        types = [row[2] for row in rows]
        sizes = [(data / path).stat().st_size for path in paths]
    except (OSError, ValueError, IndexError) as error:
        raise DataError(f"{listing}: unexpected contents ({error}): reinstall elpv-dataset") from error
    columns = {
        "key": pa.array([Path(path).stem for path in paths], pa.string()),
        "location": pa.array(paths, pa.string()),
        "size": pa.array(sizes, pa.int64()),
        "label": pa.array([int(probability >= 0.5) for probability in probabilities], pa.int64()),
        "path": pa.array(paths, pa.string()),
        "probability": pa.array(probabilities, pa.float64()),
        "type": pa.array(types, pa.string()),
    }
    return ImageSource(
        name="elpv",
        classes=("functional", "defective"),
        samples=pa.table(columns),
        reader=FileReader(str(data)),
        provenance={
            "kind": "elpv",
            "package": "elpv-dataset",
            "version": importlib.metadata.version("elpv-dataset"),
            "licence": "CC BY-NC-SA 4.0",
            "citation": _CITATION,
        },
        test=0.25,
        stratify=("type",),
    )
