"""Data on disk: sources packed into WebDataset shards, an index of what lies where, and plans of who reads what when.

`pack.pack` writes a folder, `check.check` verifies it, `index.Dataset` and `index.Index` open it, `store.LocalStore`
reads images from it. Nothing here imports torch, except the torchvision source and the WebDataset writer, when used.
"""
