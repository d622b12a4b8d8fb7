"""Packs a source of labelled images into WebDataset shards with an index, and checks packed directories.

In: a source (`sources`) and `PackOptions`. Out: a directory of tars, an Arrow index a split and `dataset.json`. Open
`pack.py` first: `layout` assigns splits and shards, `write_shard` writes one tar, `output_dir` makes packing resumable,
`check` verifies the result.
"""
