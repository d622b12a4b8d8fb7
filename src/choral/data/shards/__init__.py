"""Packed data sets on disk: the shards, their index, and the plan of which samples make which batch.

In: a packed directory (`dataset.json`, an Arrow index a split, tar shards). Out: sample records, image bytes, and row
numbers for each batch. Open `index.py` first: `Dataset` reads the description, `Index` maps a split. `store.LocalStore`
reads image bytes; `epoch_plan` orders samples for training and evaluation; `splits` and `strata` divide samples into
splits and folds; `tar` reads tar headers. Nothing here imports torch.
"""
