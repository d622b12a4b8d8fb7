"""Measures the recall of near-duplicate search on duplicates planted among the demo's solar cells, kind by kind.

    python tests/bench/bench_duplicates.py data/elpv        # minutes: 2,624 images and 260 planted ones

Copies of training images are planted in the test split: saved again, resized, cropped, relit, mirrored. The cells of one
module are very similar, and some were cut from neighbouring wafers; such pairs are found too, and counted separately.
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
    """Print one row per kind of copy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards")
    parser.add_argument("--each", type=int, default=20, help="copies per kind")
    parser.add_argument("--images", type=int, default=None, help="images per split (default: all)")
    options = parser.parse_args()
    from choral.analysis.duplicates import find_duplicates
    from choral.analysis.image_survey import survey_images
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
            name = f"{split}/{dataset.classes[record.label]}/original{len(files):05d}.{record.ext}"
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
        found = find_duplicates(survey_images(packed_data), train="train")
        seconds = time.perf_counter() - started
    groups = [" ".join(sample.key for sample in group.samples) for group in found.groups]
    print("copies     planted  found")
    for kind, pairs in planted.items():
        hits = sum(any(f"{one}-" in text and f"{other}-" in text for text in groups) for one, other in pairs)
        print(f"{kind:10} {len(pairs):7}  {hits:5}")
    original = sum("copy-" not in text for text in groups)
    print(f"{found.compared} images in {seconds:.0f} s; {original} groups without a planted copy, {found.found} in all")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
