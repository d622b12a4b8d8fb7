"""From labelled images to batches on a device, in four rooms.

`packing` turns a source into shards, `shards` says what lies where and who reads what when, `loading` turns bytes into
batches, `augment` changes training batches at random. Open `loading/input_pipeline` first.
"""
