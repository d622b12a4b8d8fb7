"""Features of a frozen network, computed once and cached on disk, and linear heads fitted to them.

In: a network, a split and its images. Out: (n, width) float32 features and a fitted linear head. Open `extract.py` first:
it fills the cache (`cache.py`) with the input of the last layer (`classifier.py`); `linear_heads.py` fits heads to it,
`strategy_choice.py` measures which fine-tuning strategy suits the data.
"""
