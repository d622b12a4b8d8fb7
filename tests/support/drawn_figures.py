"""What tests read from a figure's SVG: its texts, and whether they lie on the page and apart from each other."""

from __future__ import annotations

import re
from itertools import combinations
from typing import NamedTuple
from xml.etree import ElementTree

from choral.core.figures import figure_style, measure_text

SVG = "{http://www.w3.org/2000/svg}"


class Box(NamedTuple):
    """Of a text, in points from the top left."""

    text: str
    left: float
    top: float
    right: float
    bottom: float

    def overlaps(self, other: Box) -> bool:
        return (
            self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom
        )


def svg_texts(content: bytes) -> list[str]:
    """Return the texts of an SVG document in their order."""
    return ["".join(element.itertext()) for element in ElementTree.fromstring(content).iter(f"{SVG}text")]


def misplaced_texts(content: bytes) -> list[tuple[str, ...]]:
    """Return the texts of an SVG document that leave the page, and the pairs of texts that overlap."""
    root = ElementTree.fromstring(content)
    width, height = map(float, root.attrib["viewBox"].split()[2:])
    with figure_style():
        boxes = [_box(element) for element in root.iter(f"{SVG}text")]
    outside = [(b.text,) for b in boxes if b.left < 0 or b.top < 0 or b.right > width or b.bottom > height]
    return [*outside, *((one.text, other.text) for one, other in combinations(boxes, 2) if one.overlaps(other))]


def _box(element: ElementTree.Element) -> Box:
    style = dict(re.findall(r"([\w-]+): ([^;]+)", element.attrib["style"]))
    size, text = float(style["font-size"].removesuffix("px")), "".join(element.itertext())
    length = 72 * measure_text(text, size, "bold" if style.get("font-weight") == "700" else "normal")
    above, below = 0.7 * size, 0.1 * size
    if "x" not in element.attrib:  # a line of several
        x, y = map(float, re.findall(r"translate\(([-\d.]+) ([-\d.]+)\)", element.attrib["transform"])[0])
        return Box(text, x, y - above, x + length, y + below)
    x, y = float(element.attrib["x"]), float(element.attrib["y"])
    before = {"start": 0.0, "middle": length / 2, "end": length}[style["text-anchor"]]
    if element.attrib["transform"].startswith("rotate(-90 "):  # read from below
        return Box(text, x - above, y - length + before, x + below, y + before)
    return Box(text, x - before, y - above, x - before + length, y + below)
