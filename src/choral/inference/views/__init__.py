"""Views for test-time augmentation: named, deterministic transforms of a batch of images that keep its size.

`grammar` reads what users write, `definition` says what a view is, `window` where its pixels come from; none of these
imports torch, so that configs and ledgers can be read without it. `shown` makes the tensors.
"""

from choral.inference.views.definition import Step, View
from choral.inference.views.grammar import expand, view_of

__all__ = ["Step", "View", "expand", "view_of"]
