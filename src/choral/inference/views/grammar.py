"""From what users write to views.

    list    := product , product ...            each view once, in order
    product := factor * factor ...              the image goes through them from left to right
    factor  := NAME | NAME[value,value ...] | ( list )

A factor may stand for several views, its alternatives; a product is made of each with each: `hflip*scales[0.9,1,1.1]` is
hflip*scale[0.9], hflip, hflip*scale[1.1], and `(identity,hflip)*five_crop` is `ten_crop`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

from choral.config.fields import split_at_commas
from choral.core.errors import ConfigError, did_you_mean
from choral.inference.views.definition import CORNERS, SYMMETRIES, Step, View, canonical

MOST_VIEWS = 512  # of one list: each is a forward pass of every member
_CROP_SIDE = 0.875  # 224 of 256, as the ten crops of Krizhevsky et al. 2012
_TOKEN = re.compile(r"\s*([A-Za-z_][A-Za-z0-9_]*|[-+]?[0-9.][0-9.eE+-]*|[\[\](),*])")
_Values = tuple[str | float, ...]


@dataclass(frozen=True)
class _Kind:
    """A name with values in brackets.

    Attributes:
        steps: from the values to the alternatives that they stand for.
        example: for messages.
        low, high: the range of its numbers.
        counts: how many values it takes; None: one or more.
        corner: whether the first value is the name of a corner.
    """

    steps: Callable[[_Values], list[Step]]
    example: str
    low: float
    high: float
    counts: tuple[int, ...] | None = None
    corner: bool = False


def _levels(kind: str) -> Callable[[_Values], list[Step]]:
    return lambda values: [Step(kind, (value,)) for value in values]


def _one(kind: str) -> Callable[[_Values], list[Step]]:
    return lambda values: [Step(kind, values)]


def _four_shifts(values: _Values) -> list[Step]:
    """Left, right, up and down by each of the fractions."""
    found = []
    for value in values:
        assert isinstance(value, float)
        found += [Step("shift", way) for way in ((-value, 0.0), (value, 0.0), (0.0, -value), (0.0, value))]
    return found


def _five_crops(values: _Values) -> list[Step]:
    side = values[0] if values else _CROP_SIDE
    return [Step("crop", (corner, side)) for corner in CORNERS]


_KINDS = {
    "shift": _Kind(_one("shift"), "shift[0.05,0]", -0.5, 0.5, counts=(2,)),
    "shifts": _Kind(_four_shifts, "shifts[0.05]", 0.001, 0.5),
    "scale": _Kind(_one("scale"), "scale[0.9]", 0.25, 4.0, counts=(1,)),
    "scales": _Kind(_levels("scale"), "scales[0.9,1,1.1]", 0.25, 4.0),
    "crop": _Kind(_one("crop"), "crop[top_left,0.875]", 0.1, 1.0, counts=(2,), corner=True),
    "five_crop": _Kind(_five_crops, "five_crop[0.875]", 0.1, 1.0, counts=(0, 1)),
    "ten_crop": _Kind(_five_crops, "ten_crop[0.875]", 0.1, 1.0, counts=(0, 1)),
    "brightness": _Kind(_levels("brightness"), "brightness[0.8,1.2]", 0.1, 10.0),
    "contrast": _Kind(_levels("contrast"), "contrast[0.8,1.2]", 0.1, 10.0),
}
_GROUPS = {"d4": tuple(SYMMETRIES), "rotations": ("identity", "rot90", "rot180", "rot270")}
_KNOWN = (*SYMMETRIES, *_GROUPS, *_KINDS)


def expand(names: Sequence[str] | str) -> tuple[str, ...]:
    """Return the canonical names of the views that a list stands for, in order, each one once.

    A view named twice counts once: its weight in the mean would otherwise depend on how the list was written.

    Args:
        names: items of the module's grammar; a text may hold several, separated by commas.

    Raises:
        ConfigError: something that is no view (the nearest name is shown), a value out of range, no view at all, or more
            than 512.
    """
    views: dict[str, None] = {}
    for text in [names] if isinstance(names, str) else names:
        for item in split_at_commas(text):
            views.update(dict.fromkeys(view.name for view in _Reader(item).read()))
    if not views:
        raise ConfigError("views: an empty list; name at least one view, for instance identity")
    if len(views) > MOST_VIEWS:
        raise ConfigError(
            f"views: {len(views)} views, each a forward pass of every member; {MOST_VIEWS} are the most that are made"
        )
    return tuple(views)


@lru_cache(maxsize=4 * MOST_VIEWS)
def view_of(name: str) -> View:
    """Return the view of a name that `expand` returned, such as the columns of a ledger have.

    Raises:
        ConfigError: something that is no view, or stands for several.
    """
    views = _Reader(name).read()
    if len(views) != 1:
        raise ConfigError(f"views: '{name}' stands for {len(views)} views, expected one")
    return views[0]


class _Reader:
    """Reads one item of a list of views."""

    def __init__(self, text: str) -> None:
        self._text, self._tokens, place = text, list[str](), 0
        stripped = text.rstrip()
        while place < len(stripped):
            found = _TOKEN.match(stripped, place)
            if found is None:
                raise self._error(f"'{stripped[place:].strip()[0]}' has no meaning here")
            self._tokens.append(found.group(1))
            place = found.end()
        self._next = 0

    def read(self) -> list[View]:
        """Return the item's alternatives."""
        found = self._product()
        if self._next < len(self._tokens):
            raise self._error(f"'{self._tokens[self._next]}' where nothing was expected; views are joined by '*'")
        return list(dict.fromkeys(canonical(steps) for steps in found))

    def _product(self) -> list[tuple[Step, ...]]:
        factors = [self._factor()]
        while self._took("*"):
            factors.append(self._factor())
        count = 1
        for factor in factors:
            count *= len(factor)
        if count > 8 * MOST_VIEWS:  # some of them may be the same
            raise self._error(f"stands for {count} views, each a forward pass of every member")
        return [sum(chosen, ()) for chosen in product(*factors)]

    def _factor(self) -> list[tuple[Step, ...]]:
        if self._took("("):
            found = self._product()
            while self._took(","):
                found += self._product()
            self._need(")")
            return found
        name = self._take("a view")
        if name in SYMMETRIES:
            return [(Step(name),)]
        if name in _GROUPS:
            return [(Step(member),) for member in _GROUPS[name]]
        if name not in _KINDS:
            near = did_you_mean(name, _KNOWN)
            raise ConfigError(f"views: unknown view {name!r}.{near} Known views: {', '.join(_KNOWN)}")
        steps = _KINDS[name].steps(self._values(name))
        if name == "ten_crop":
            return [(Step(flip), step) for flip in ("identity", "hflip") for step in steps]
        return [(step,) for step in steps]

    def _values(self, name: str) -> _Values:
        kind, values = _KINDS[name], list[str | float]()
        if self._took("["):
            values.append(self._value(name, 0))
            while self._took(","):
                values.append(self._value(name, len(values)))
            self._need("]")
        right = len(values) in kind.counts if kind.counts is not None else len(values) > 0
        if not right:
            raise self._error(f"expected values in brackets such as {kind.example}")
        return tuple(values)

    def _value(self, name: str, position: int) -> str | float:
        kind, token = _KINDS[name], self._take("a value")
        if kind.corner and position == 0:
            if token not in CORNERS:
                near = did_you_mean(token, CORNERS)
                raise self._error(f"no corner '{token}'.{near} There are: {', '.join(CORNERS)}")
            return token
        try:
            value = float(f"{float(token):g}") + 0.0  # what its name says, digit for digit; -0 is 0
        except ValueError:
            raise self._error(f"'{token}' is no number; {name} is written {kind.example}") from None
        if not kind.low <= value <= kind.high:
            raise self._error(f"{name} takes {kind.low:g} to {kind.high:g}, not {token}")
        return value

    def _took(self, token: str) -> bool:
        here = self._next < len(self._tokens) and self._tokens[self._next] == token
        self._next += here
        return here

    def _take(self, expected: str) -> str:
        if self._next == len(self._tokens) or self._tokens[self._next] in "[](),*":
            raise self._error(f"expected {expected}{self._after()}")
        self._next += 1
        return self._tokens[self._next - 1]

    def _need(self, token: str) -> None:
        if not self._took(token):
            raise self._error(f"'{token}' is missing{self._after()}")

    def _after(self) -> str:
        return f" after '{''.join(self._tokens[: self._next])}'" if self._next else ""

    def _error(self, what: str) -> ConfigError:
        return ConfigError(f"views: '{self._text}': {what}")
