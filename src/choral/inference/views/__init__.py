"""Views for test-time augmentation: named, deterministic transforms of a batch of images that keep its size.

In: what users write (`evaluate.views: [d4, "hflip*scales[0.9,1.1]"]`). Out: canonical names of views, and their tensors.
`grammar` parses, `view` defines what a view is, `resampling` computes where its pixels come from, `transforms` makes the
tensors. Only `transforms` imports torch, so that configs and ledgers can be read without it.

To add a view:
1. `view.py`: describe the step in the table of its docstring; add its neutral values to `_NEUTRAL` if it has any, and its
   kind to `_COMMUTES` if it gives the same result before and after every symmetry.
2. `grammar.py`: add its name, values and range to `_KINDS` (or to `_GROUPS`, if it only names several existing views).
3. `transforms.py`: return its `nn.Module` in `_build_layer`; for moved pixels, its taps in `resampling.compute_taps`.
4. `tests/inference/test_views.py`: compare it with an independent implementation, such as torchvision's.
5. inference/README.md: add a row to the table of views.
"""

from choral.inference.views.grammar import expand_views, parse_view
from choral.inference.views.view import Step, View

__all__ = ["Step", "View", "expand_views", "parse_view"]
