"""The definition of a view: a sequence of steps, applied in order, in one canonical form.

| kind | values | result |
|---|---|---|
| a name of `SYMMETRIES` | | one of the eight symmetries of the square, the dihedral group D4 |
| `shift` | x, y | content moved right and down by these fractions of width and height, rounded to whole pixels |
| `scale` | factor | content magnified about the centre; below 1 it shrinks |
| `crop` | corner, side | a crop with `side` times the height and width, in this corner or the centre, resized to full size |
| `brightness` | factor | pixels times the factor, clamped to [0, 1] |
| `contrast` | factor | pixels moved away from (below 1: towards) the mean grey of their image, clamped to [0, 1] |

Shifts and scales fill the area beyond the border by reflection, without repeating the border pixel.
"""

from __future__ import annotations

from dataclasses import dataclass

SYMMETRIES: dict[str, tuple[bool, bool, bool]] = {
    "identity": (False, False, False),
    "hflip": (False, False, True),
    "vflip": (False, True, False),
    "rot90": (True, True, False),
    "rot180": (False, True, True),
    "rot270": (True, False, True),
    "transpose": (True, False, False),
    "antitranspose": (True, True, True),
}
"""Name to (transpose, then reverse the rows, then reverse the columns). Rotations are counter-clockwise; `transpose` mirrors
at the diagonal from top left to bottom right, `antitranspose` at the other one."""
_NAMES = {symmetry: name for name, symmetry in SYMMETRIES.items()}
CORNERS = ("top_left", "top_right", "bottom_left", "bottom_right", "centre")
_NEUTRAL: dict[str, tuple[str | float, ...]] = {
    "shift": (0.0, 0.0),
    "scale": (1.0,),
    "brightness": (1.0,),
    "contrast": (1.0,),
}
_COMMUTES = frozenset({"scale", "brightness", "contrast"})


@dataclass(frozen=True)
class Step:
    """One elementary transform.

    Attributes:
        kind: from the table in the module's docstring.
        values: its parameters.
    """

    kind: str
    values: tuple[str | float, ...] = ()

    @property
    def name(self) -> str:
        """Text that `grammar.parse_view` parses to an equal step."""
        if not self.values:
            return self.kind
        values = (value if isinstance(value, str) else f"{value:g}" for value in self.values)
        return f"{self.kind}[{','.join(values)}]"

    @property
    def swaps_sides(self) -> bool:
        """Whether it exchanges height and width, so that images must be square."""
        return self.kind in SYMMETRIES and SYMMETRIES[self.kind][0]

    @property
    def is_neutral(self) -> bool:
        """Whether it changes nothing."""
        whole = self.kind == "crop" and self.values[1] == 1.0
        return self.kind == "identity" or whole or self.values == _NEUTRAL.get(self.kind, (None,))


@dataclass(frozen=True)
class View:
    """A transform of images: its steps in order; () is the identity. Use `canonical_view` to create one.

    Equal views have equal names, and `grammar.parse_view` parses a name to an equal view.
    """

    steps: tuple[Step, ...] = ()

    @property
    def name(self) -> str:
        """Name of its column in ledgers, such as "hflip*scale[0.9]"."""
        return "*".join(step.name for step in self.steps) or "identity"

    @property
    def is_square(self) -> bool:
        """Whether it needs square images."""
        return any(step.swaps_sides for step in self.steps)


def canonical_view(steps: tuple[Step, ...]) -> View:
    """Return the canonical view of these steps, so that equal transforms have equal names.

    Moves symmetries before the steps that they commute with (scale, brightness, contrast), composes adjacent symmetries,
    and drops neutral steps.
    """
    result: list[Step] = []
    for step in steps:
        if step.is_neutral:
            continue
        place = len(result)
        if step.kind in SYMMETRIES:
            while place and result[place - 1].kind in _COMMUTES:
                place -= 1
            if place and result[place - 1].kind in SYMMETRIES:
                place -= 1
                step = _compose(result.pop(place), step)
        if not step.is_neutral:
            result.insert(place, step)
    return View(tuple(result))


def _compose(first: Step, then: Step) -> Step:
    """Return the composition of two symmetries."""
    transposed, rows, columns = SYMMETRIES[first.kind]
    transposes, reverses_rows, reverses_columns = SYMMETRIES[then.kind]
    if transposes:  # the first one's reversal of rows becomes one of columns
        rows, columns = columns, rows
    return Step(_NAMES[transposed ^ transposes, rows ^ reverses_rows, columns ^ reverses_columns])
