"""A source of labelled images becomes a directory of WebDataset shards with an index, and is checked. Open `pack` first."""
