"""What a view is: a short sequence of steps, in the order in which the image goes through them, in one canonical form.

| kind | values | what it shows |
|---|---|---|
| a name of `SYMMETRIES` | | one of the eight symmetries of the square, the dihedral group D4 |
| `shift` | x, y | the content moved right and down by these fractions of width and height, to whole pixels |
| `scale` | factor | the content magnified about the centre; below 1 it shrinks |
| `crop` | corner, side | the square of `side` of the height and width in this corner or the centre, resized to the whole |
| `brightness` | factor | pixels times the factor, kept within 0 and 1 |
| `contrast` | factor | pixels moved away from (below 1: towards) the mean grey of their image, kept within 0 and 1 |

What a shift or scale shows from beyond the border is the reflection of what lies within it; the border pixel is not
repeated.
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
"""Name to (rows and columns change places, then the rows are reversed, then the columns are). Rotations turn
counter-clockwise; `transpose` mirrors at the diagonal from top left to bottom right, `antitranspose` at the other one."""
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
        kind: of the module's table.
        values: its parameters.
    """

    kind: str
    values: tuple[str | float, ...] = ()

    @property
    def name(self) -> str:
        """What `grammar.view_of` reads back to an equal step."""
        if not self.values:
            return self.kind
        shown = (value if isinstance(value, str) else f"{value:g}" for value in self.values)
        return f"{self.kind}[{','.join(shown)}]"

    @property
    def swaps_sides(self) -> bool:
        """Whether height and width change places, so that images must be square."""
        return self.kind in SYMMETRIES and SYMMETRIES[self.kind][0]

    @property
    def is_neutral(self) -> bool:
        """Whether it changes nothing."""
        whole = self.kind == "crop" and self.values[1] == 1.0
        return self.kind == "identity" or whole or self.values == _NEUTRAL.get(self.kind, (None,))


@dataclass(frozen=True)
class View:
    """A transform of images: its steps, one after the other; none: the identity. `canonical` makes one.

    Equal views have equal names, and `grammar.view_of` reads a name back to an equal view.
    """

    steps: tuple[Step, ...] = ()

    @property
    def name(self) -> str:
        """Of its column in ledgers, such as "hflip*scale[0.9]"."""
        return "*".join(step.name for step in self.steps) or "identity"

    @property
    def is_square(self) -> bool:
        """Whether it needs images as high as they are wide."""
        return any(step.swaps_sides for step in self.steps)


def canonical(steps: tuple[Step, ...]) -> View:
    """Return the view of these steps, so that what is the same transform has the same name.

    Symmetries come before steps that commute with them (scales, brightness, contrast), neighbouring ones are composed,
    and what changes nothing is left out.
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
                step = _composed(result.pop(place), step)
        if not step.is_neutral:
            result.insert(place, step)
    return View(tuple(result))


def _composed(first: Step, then: Step) -> Step:
    """Return two symmetries as one."""
    transposed, rows, columns = SYMMETRIES[first.kind]
    transposes, reverses_rows, reverses_columns = SYMMETRIES[then.kind]
    if transposes:  # what was done to rows is now done to columns
        rows, columns = columns, rows
    return Step(_NAMES[transposed ^ transposes, rows ^ reverses_rows, columns ^ reverses_columns])
