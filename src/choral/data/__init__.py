"""From labelled images to batches on a device, in four packages.

`packing` turns a source into shards, `shards` reads them and plans which samples make which batch, `loading` turns their
bytes into batches on a device, `augment` transforms training batches at random. Open `loading/input_pipeline.py` first.
"""
