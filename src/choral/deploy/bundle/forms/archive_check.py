"""Whether a file of torch.export can be read without running anything that stands in it.

`torch.export.load` unpickles example inputs, and weights and constants that are marked so; it evaluates shape expressions
as Python, looks up operators by dotted names anywhere in torch, and executes guards. What choral writes has none of the
first, and the rest in few words: a file with anything else is refused before torch sees it.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterator
from typing import Any, NoReturn

from torch.export.pt2_archive._package import PT2ArchiveReader

from choral.core.errors import DataError

_PROGRAM = "models/model.json"
_EMPTY = "data/sample_inputs/model.pt"
_CONFIGS = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
_RECORD = re.compile(
    r"models/model\.json|data/sample_inputs/model\.pt|data/weights/(weight_\d+|model_weights_config\.json)|"
    r"data/constants/(tensor_\d+|model_constants_config\.json)|extra/choral\.json|"
    r"archive_format|archive_version|\.data/version|\.data/serialization_id|byteorder"
)
_PAYLOAD = re.compile(r"weight_\d+|tensor_\d+")
_OPERATOR = re.compile(
    r"torch\.ops\.aten\.(?!from_file)\w+\.\w+|_operator\.(add|sub|mul|floordiv|mod|neg|pow|[glen][te])"
)
_WORD = re.compile(r"[\w.+\-]*")
_EXPRESSION = re.compile(
    r"(s\d+|\d+|Symbol|Integer|Mul|Add|Pow|Max|Min|Mod|PythonMod|FloorDiv|CleanDiv|Eq|Ne|Le|Lt|Ge|Gt|positive|integer|"
    r"nonnegative|True|False|[-+*/(),='<> ])*"
)
_CONTAINERS = (None, "builtins.tuple", "builtins.list", "builtins.dict")


def check_archive(data: bytes, where: str) -> None:
    """Refuse what is no file of torch.export, or one that reading would execute something of.

    Args:
        data: the file.
        where: it is, for messages.

    Raises:
        DataError: saying what was found.
    """

    def refuse(found: str) -> NoReturn:
        raise DataError(f"{where}: {found}: is damaged, or was not written by choral, and is not loaded")

    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if "version" in archive.namelist():  # of an older format, which torch would unpickle
                refuse("an older format")
        reader = PT2ArchiveReader(io.BytesIO(data))
        for name in reader.get_file_names():
            if _RECORD.fullmatch(name) is None:
                refuse(f"a record '{name}'")
        if reader.read_bytes(_EMPTY):
            refuse("pickled example inputs")
        for name in _CONFIGS:
            for entry in json.loads(reader.read_bytes(name))["config"].values():
                if entry["use_pickle"] or _PAYLOAD.fullmatch(entry["path_name"]) is None:
                    refuse(f"{name}: a pickled tensor")
        for found in _suspicious(json.loads(reader.read_bytes(_PROGRAM))):
            refuse(f"{_PROGRAM}: {found}")
    except (zipfile.BadZipFile, RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        refuse(f"not a file of torch.export ({error})")


def _suspicious(value: Any, key: str = "") -> Iterator[str]:
    """Yield what is not what choral writes: texts, by the names under which they stand."""
    if isinstance(value, dict):
        for name, own in value.items():
            if _WORD.fullmatch(name) is None:
                yield f"a name {name!r}"
            if name in ("guards_code", "metadata", "treespec_namedtuple_fields") and own:
                yield f"{name} that are not empty"
            yield from _suspicious(own, name)
    elif isinstance(value, list):
        for own in value:
            yield from _suspicious(own, key)
    elif isinstance(value, str) and not _is_harmless(value, key):
        yield f"{key} {value[:80]!r}"


def _is_harmless(text: str, key: str) -> bool:
    if key == "target":
        return _OPERATOR.fullmatch(text) is not None
    if key == "expr_str":
        return _EXPRESSION.fullmatch(text) is not None
    if key in ("in_spec", "out_spec"):
        version, tree = json.loads(text)
        return version == 1 and all(kind in _CONTAINERS for kind in _kinds(tree))
    return _WORD.fullmatch(text) is not None


def _kinds(tree: dict[str, Any]) -> Iterator[Any]:
    """Yield the types of the containers of a tree of arguments."""
    yield tree["type"] if tree["context"] in (None, "null", "[]") else tree["context"]
    for child in tree["children_spec"]:
        yield from _kinds(child)
