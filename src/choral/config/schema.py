"""The JSON schema of config files, by which editors complete and check keys.

It accepts what `files` reads: scalars may be strings, a list of strings may be one string with commas, and a file may name
its `base`. Checks across fields are not part of it.
"""

from __future__ import annotations

import json
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from choral.config.config import Config
from choral.config.text import BOOLEANS

_NUMBER_TEXT = {"type": "string", "pattern": r"^[-+]?([0-9]+[.]?[0-9]*|[.][0-9]+)([eE][-+]?[0-9]+)?$"}
_NULLS = [None, "null", "~", "none", "None"]


def render_json_schema() -> str:
    """Return the JSON schema of a config file as indented JSON, the contents of configs/schema.json."""
    return json.dumps(build_json_schema(), indent=2, ensure_ascii=False) + "\n"


def build_json_schema() -> dict[str, Any]:
    """Return the JSON schema (draft 2020-12) of a config file; descriptions are the docstrings of the fields."""
    schema = Config.model_json_schema(schema_generator=_ConfigFileSchema)
    for section in (schema, *schema["$defs"].values()):
        for part in (section, *section["properties"].values()):
            if "description" in part:
                part["description"] = _join_lines(part["description"])
    base = {"type": "string", "description": "Path of the config file that this one changes, relative to this file."}
    return {
        "$schema": GenerateJsonSchema.schema_dialect,
        **schema,
        "title": "A choral config",
        "properties": {"base": base, **schema["properties"]},
    }


def _join_lines(text: str) -> str:
    """Return text with its paragraphs on one line each."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))


class _ConfigFileSchema(GenerateJsonSchema):
    """Types as YAML files may write them."""

    def int_schema(self, schema: core_schema.IntSchema) -> JsonSchemaValue:
        return {"anyOf": [super().int_schema(schema), _NUMBER_TEXT]}

    def float_schema(self, schema: core_schema.FloatSchema) -> JsonSchemaValue:
        return {"anyOf": [super().float_schema(schema), _NUMBER_TEXT]}

    def bool_schema(self, schema: core_schema.BoolSchema) -> JsonSchemaValue:
        return {"anyOf": [super().bool_schema(schema), {"enum": list(BOOLEANS)}]}

    def str_schema(self, schema: core_schema.StringSchema) -> JsonSchemaValue:
        return {**super().str_schema(schema), "type": ["string", "number", "boolean"]}

    def nullable_schema(self, schema: core_schema.NullableSchema) -> JsonSchemaValue:
        return {"anyOf": [self.generate_inner(schema["schema"]), {"enum": _NULLS}]}

    def tuple_schema(self, schema: core_schema.TupleSchema) -> JsonSchemaValue:
        array = super().tuple_schema(schema)
        with_commas = "variadic_item_index" in schema and schema["items_schema"][0]["type"] == "str"
        return {"anyOf": [array, {"type": "string"}]} if with_commas else array

    def field_title_should_be_set(self, schema: Any) -> bool:  # names of keys are enough
        return False
