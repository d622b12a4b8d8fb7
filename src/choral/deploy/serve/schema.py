"""Response models for /openapi.json; `Prediction.content` and `Problem.response` produce the values."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, create_model


class _Described(BaseModel):
    """A response has no field that is not described."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class ClassPrediction(_Described):
    """One class for an image."""

    image: str
    """Name of the file, as it was sent."""
    label: str
    """The class."""
    probability: float
    """Of it."""
    probabilities: list[float]
    """Of each class, in the order of `classes`."""
    votes: dict[str, tuple[str, float]]
    """Member to its own class and that one's probability."""
    possible: list[str] = []
    """The classes of the conformal set; absent without a calibration that has sets."""
    unsure: bool = False
    """Whether the probability is below what was chosen; absent where nothing was."""


class MultilabelPrediction(_Described):
    """The labels that apply to an image, perhaps none."""

    image: str
    """Name of the file, as it was sent."""
    labels: dict[str, float]
    """Those that apply, most probable first, with their probabilities."""
    probabilities: dict[str, float]
    """Of every label."""
    votes: dict[str, list[str]]
    """Member to the labels that it gives by itself."""
    possible: list[str] = []
    """Labels that cannot be left out at the stated coverage; absent without a calibration that has sets."""


class RegressionPrediction(_Described):
    """Numbers for an image, in the targets' own units."""

    image: str
    """Name of the file, as it was sent."""
    values: dict[str, float]
    """Target to its number."""
    spreads: dict[str, float]
    """Target to the standard deviation of the members' numbers."""
    votes: dict[str, dict[str, float]]
    """Member to its own numbers."""
    intervals: dict[str, tuple[float, float] | None] = {}
    """Target to the ends of its conformal interval, null where it has none; absent without a calibration that has them."""


class NoAnswer(_Described):
    """In place of the prediction of an image that failed, if others of the request succeeded."""

    image: str
    """Name of the file, as it was sent."""
    error: str
    """Why."""
    status: int
    """Of the response, had it been sent alone."""


class ProblemDetails(_Described):
    """The error of a request (RFC 9457, application/problem+json)."""

    title: str
    """Name of the status."""
    status: int
    """Of the response."""
    detail: str
    """What is wrong, and what was expected."""
    limits: dict[str, float] = {}
    """Name to value of the limit that was exceeded; absent where none was."""


_BY_TASK: dict[str, type[_Described]] = {"multilabel": MultilabelPrediction, "regression": RegressionPrediction}


def build_response_model(task: str) -> type[BaseModel]:
    """Return the response model of /predict for a task."""
    each: Any = _BY_TASK.get(task, ClassPrediction) | NoAnswer
    return create_model(
        "Answers",
        __base__=_Described,
        __doc__="The predictions for the images of a request.",
        bundle=(str, Field(description="Name of the bundle or run.")),
        task=(str, Field(description="multiclass, multilabel or regression.")),
        classes=(list[str], Field(description="Names of the classes, labels or targets.")),
        answers=(list[each], Field(description="One per image, in the order of the request.")),
    )
