"""Planted duplicates among the solar cells of the demo: how many are found, kind by kind.

    python tests/bench/bench_duplicates.py data/elpv        # minutes: 2,624 images and 260 planted ones

Of images of train, copies are planted in test: saved again, resized, cut, lit otherwise, mirrored. The cells of one module
look much alike, and some were cut from neighbouring wafers: those twins are found, too, and are counted apart.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "support"))


def main() -> int:
    """Print a row a kind of copy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards")
    parser.add_argument("--each", type=int, default=20, help="copies of a kind")
    parser.add_argument("--images", type=int, default=None, help="of the data; all")
    options = parser.parse_args()
    from choral.analysis.duplicates import duplicates_of
    from choral.analysis.image_survey import survey
    from choral.data.loading.decode import decode
    from choral.data.shards.index import Dataset, Index
    from choral.data.shards.store import LocalStore
    from made_data import VARIANTS, packed

    dataset = Dataset.open(options.shards)
    store, files, originals = LocalStore(dataset), {}, []
    for split in dataset.splits:
        index = Index.open(dataset, split)
        for row in range(len(index))[: options.images]:
            record = index.row(row)
            data = store.read(record.shard, record.offset, record.length)
            name = f"{split}/{dataset.classes[record.label]}/own{len(files):05d}.{record.ext}"
            files[name] = data
            if split == "train":
                originals.append(name)
    chosen = np.random.default_rng(0).permutation(len(originals))
    planted: dict[str, list[tuple[str, str]]] = {}
    for number, (kind, change) in enumerate(VARIANTS.items()):
        for place in chosen[number * options.each : (number + 1) * options.each].tolist():
            original = originals[place]
            name = f"test/{original.split('/')[1]}/copy-{kind}-{place}.png"
            files[name] = change(np.ascontiguousarray(decode(files[original])))
            planted.setdefault(kind, []).append((Path(original).stem, Path(name).stem))
    with tempfile.TemporaryDirectory() as name:
        packed_data = packed(Path(name), files)
        started = time.perf_counter()
        found = duplicates_of(survey(packed_data), train="train")
        seconds = time.perf_counter() - started
    groups = [" ".join(place.key for place in twins.places) for twins in found.twins]
    print("copies     planted  found")
    for kind, pairs in planted.items():
        hits = sum(any(f"{one}-" in text and f"{other}-" in text for text in groups) for one, other in pairs)
        print(f"{kind:10} {len(pairs):7}  {hits:5}")
    own = sum("copy-" not in text for text in groups)
    print(f"{found.compared} images in {seconds:.0f} s; {own} groups of the data's own, {found.found} in all")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
