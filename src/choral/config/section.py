"""The base class of config sections: frozen pydantic models that read text by the type of the field."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator

from choral.config.messages import config_error, field_types
from choral.config.text import parse_text


class Section(BaseModel, frozen=True):
    """A part of the config: immutable, compared by value, hashable unless it holds a mapping.

    The docstrings below the fields are their descriptions in the JSON schema. Checks across fields are model validators
    that raise ConfigError.
    """

    model_config = ConfigDict(
        extra="forbid",
        use_attribute_docstrings=True,
        defer_build=True,  # most commands use few of the sections
        allow_inf_nan=False,
        coerce_numbers_to_str=True,
    )

    @field_validator("*", mode="before")
    @classmethod
    def _parse_text(cls, value: Any, info: ValidationInfo) -> Any:
        return parse_text(value, field_types(cls)[str(info.field_name)])

    def replace(self, **changes: Any) -> Self:
        """Return a copy with other values for some fields, validated like a new section.

        Raises:
            ConfigError: no such field, or the values do not fit.
        """
        return validate(type(self), {**dict(self), **changes})


S = TypeVar("S", bound=Section)


def validate(section: type[S], values: Mapping[str, Any]) -> S:
    """Return a section with these values for its fields; nested sections may be mappings, and scalars text.

    Raises:
        ConfigError: the first mistake, with its dotted key.
    """
    try:
        return section.model_validate(dict(values))
    except ValidationError as error:
        raise config_error(section, error) from None
