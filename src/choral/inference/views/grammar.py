"""Parses the lists of views that users write.

    list    := product , product ...            each view once, in order
    product := factor * factor ...              applied from left to right
    factor  := NAME | NAME[value,value ...] | ( list )

A factor may stand for several views, its alternatives. A product combines every alternative with every other:
`hflip*scales[0.9,1,1.1]` is hflip*scale[0.9], hflip, hflip*scale[1.1], and `(identity,hflip)*five_crop` is `ten_crop`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

from choral.config.text import split_at_commas
from choral.core.errors import ConfigError, did_you_mean
from choral.inference.views.view import CORNERS, SYMMETRIES, Step, View, canonical_view

MAX_VIEWS = 512  # in one list: each is a forward pass of every member
_CROP_SIDE = 0.875  # 224 / 256, as in the ten crops of Krizhevsky et al. 2012
_TOKEN = re.compile(r"\s*([A-Za-z_][A-Za-z0-9_]*|[-+]?[0-9.][0-9.eE+-]*|[\[\](),*])")
_Values = tuple[str | float, ...]


@dataclass(frozen=True)
class _Kind:
    """A view name that takes values in brackets.

    Attributes:
        steps: returns the alternatives for given values.
        example: for messages.
        low, high: range of every number.
        counts: allowed numbers of values, (0,) for none; None: one or more.
        corner: whether the first value is the name of a corner.
    """

    steps: Callable[[_Values], list[Step]]
    example: str
    low: float
    high: float
    counts: tuple[int, ...] | None = None
    corner: bool = False


def _one_per_value(kind: str) -> Callable[[_Values], list[Step]]:
    return lambda values: [Step(kind, (value,)) for value in values]


def _single(kind: str) -> Callable[[_Values], list[Step]]:
    return lambda values: [Step(kind, values)]


def _four_shifts(values: _Values) -> list[Step]:
    """Return shifts to the left, right, up and down by each fraction."""
    steps = []
    for value in values:
        assert isinstance(value, float)
        steps += [Step("shift", offset) for offset in ((-value, 0.0), (value, 0.0), (0.0, -value), (0.0, value))]
    return steps


def _five_crops(values: _Values) -> list[Step]:
    side = values[0] if values else _CROP_SIDE
    return [Step("crop", (corner, side)) for corner in CORNERS]


_KINDS = {
    "shift": _Kind(_single("shift"), "shift[0.05,0]", -0.5, 0.5, counts=(2,)),
    "shifts": _Kind(_four_shifts, "shifts[0.05]", 0.001, 0.5),
    "scale": _Kind(_single("scale"), "scale[0.9]", 0.25, 4.0, counts=(1,)),
    "scales": _Kind(_one_per_value("scale"), "scales[0.9,1,1.1]", 0.25, 4.0),
    "crop": _Kind(_single("crop"), "crop[top_left,0.875]", 0.1, 1.0, counts=(2,), corner=True),
    "five_crop": _Kind(_five_crops, "five_crop[0.875]", 0.1, 1.0, counts=(0, 1)),
    "ten_crop": _Kind(_five_crops, "ten_crop[0.875]", 0.1, 1.0, counts=(0, 1)),
    "brightness": _Kind(_one_per_value("brightness"), "brightness[0.8,1.2]", 0.1, 10.0),
    "contrast": _Kind(_one_per_value("contrast"), "contrast[0.8,1.2]", 0.1, 10.0),
}
_GROUPS = {"d4": tuple(SYMMETRIES), "rotations": ("identity", "rot90", "rot180", "rot270")}
_NAMES = (*SYMMETRIES, *_GROUPS, *_KINDS)


def expand_views(names: Sequence[str] | str) -> tuple[str, ...]:
    """Return the canonical names of the views in a list, in order, without duplicates.

    Duplicates are dropped, because the weight of a view in the average would otherwise depend on how the list is written.

    Args:
        names: items of the module's grammar; a text may hold several, separated by commas.

    Raises:
        ConfigError: a name is unknown (the message has the nearest one), a value is out of range, or there are no views or
            more than 512.
    """
    views: dict[str, None] = {}
    for text in [names] if isinstance(names, str) else names:
        for item in split_at_commas(text):
            views.update(dict.fromkeys(view.name for view in _Parser(item).parse()))
    if not views:
        raise ConfigError("views: the list is empty; name at least one view, such as identity")
    if len(views) > MAX_VIEWS:
        raise ConfigError(f"views: {len(views)} views, each a forward pass of every member; the maximum is {MAX_VIEWS}")
    return tuple(views)


@lru_cache(maxsize=4 * MAX_VIEWS)
def parse_view(name: str) -> View:
    """Parse a name that `expand_views` returned, or a column of a ledger has.

    Raises:
        ConfigError: the name is not a view, or stands for several.
    """
    views = _Parser(name).parse()
    if len(views) != 1:
        raise ConfigError(f"views: '{name}' stands for {len(views)} views, expected one")
    return views[0]


class _Parser:
    """Parses one item of a list of views."""

    def __init__(self, text: str) -> None:
        self._text, self._tokens, place = text, list[str](), 0
        stripped = text.rstrip()
        while place < len(stripped):
            match = _TOKEN.match(stripped, place)
            if match is None:
                raise self._error(f"unexpected character '{stripped[place:].strip()[0]}'")
            self._tokens.append(match.group(1))
            place = match.end()
        self._next = 0

    def parse(self) -> list[View]:
        """Return the item's alternatives."""
        alternatives = self._parse_product()
        if self._next < len(self._tokens):
            raise self._error(f"'{self._tokens[self._next]}' after the end of a view; join views with '*'")
        return list(dict.fromkeys(canonical_view(steps) for steps in alternatives))

    def _parse_product(self) -> list[tuple[Step, ...]]:
        factors = [self._parse_factor()]
        while self._accept("*"):
            factors.append(self._parse_factor())
        count = 1
        for factor in factors:
            count *= len(factor)
        if count > 8 * MAX_VIEWS:  # some of them may be equal
            raise self._error(f"stands for {count} views, each a forward pass of every member")
        return [sum(chosen, ()) for chosen in product(*factors)]

    def _parse_factor(self) -> list[tuple[Step, ...]]:
        if self._accept("("):
            found = self._parse_product()
            while self._accept(","):
                found += self._parse_product()
            self._require(")")
            return found
        name = self._take("a view")
        if name in SYMMETRIES:
            return [(Step(name),)]
        if name in _GROUPS:
            return [(Step(member),) for member in _GROUPS[name]]
        if name not in _KINDS:
            near = did_you_mean(name, _NAMES)
            raise ConfigError(f"views: unknown view {name!r}.{near} Known views: {', '.join(_NAMES)}")
        steps = _KINDS[name].steps(self._parse_values(name))
        if name == "ten_crop":
            return [(Step(flip), step) for flip in ("identity", "hflip") for step in steps]
        return [(step,) for step in steps]

    def _parse_values(self, name: str) -> _Values:
        kind, values = _KINDS[name], list[str | float]()
        if self._accept("["):
            values.append(self._parse_value(name, 0))
            while self._accept(","):
                values.append(self._parse_value(name, len(values)))
            self._require("]")
        right = len(values) in kind.counts if kind.counts is not None else len(values) > 0
        if not right:
            raise self._error(f"expected values in brackets such as {kind.example}")
        return tuple(values)

    def _parse_value(self, name: str, position: int) -> str | float:
        kind, token = _KINDS[name], self._take("a value")
        if kind.corner and position == 0:
            if token not in CORNERS:
                near = did_you_mean(token, CORNERS)
                raise self._error(f"no corner '{token}'.{near} There are: {', '.join(CORNERS)}")
            return token
        try:
            value = float(f"{float(token):g}") + 0.0  # rounded to the digits of the name; -0 becomes 0
        except ValueError:
            raise self._error(f"'{token}' is not a number; {name} is written {kind.example}") from None
        if not kind.low <= value <= kind.high:
            raise self._error(f"{name} takes {kind.low:g} to {kind.high:g}, not {token}")
        return value

    def _accept(self, token: str) -> bool:
        matches = self._next < len(self._tokens) and self._tokens[self._next] == token
        self._next += matches
        return matches

    def _take(self, expected: str) -> str:
        if self._next == len(self._tokens) or self._tokens[self._next] in "[](),*":
            raise self._error(f"expected {expected}{self._after()}")
        self._next += 1
        return self._tokens[self._next - 1]

    def _require(self, token: str) -> None:
        if not self._accept(token):
            raise self._error(f"'{token}' is missing{self._after()}")

    def _after(self) -> str:
        return f" after '{''.join(self._tokens[: self._next])}'" if self._next else ""

    def _error(self, what: str) -> ConfigError:
        return ConfigError(f"views: '{self._text}': {what}")
