"""A stand-in for `choral train`: ten validations whose values depend only on the learning rate. Run by tests."""

from __future__ import annotations

import json
import math
import re
import signal
import sys
import time
from pathlib import Path

EPOCHS = 10


def main() -> None:
    config, folder, pace_s = Path(sys.argv[1]).read_text(), Path(sys.argv[2]), float(sys.argv[3])
    found = re.search(r"^  lr: (.*)$", config, re.MULTILINE)
    assert found is not None
    rate = float(found[1])
    if rate > 0.5:
        (folder / "status.json").write_text(json.dumps({"state": "failed", "reason": "NotFinite: the loss is nan"}))
        sys.exit(1)
    (folder / "config.yaml").write_text(config)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(75))
    curve = folder / "metrics.jsonl"
    done = len(curve.read_text().splitlines()) if curve.is_file() else 0
    for epoch in range(done, EPOCHS):
        loss = abs(math.log10(rate) + 2.5) + 1 / (1 + epoch)
        with curve.open("a") as stream:
            stream.write(json.dumps({"step": epoch + 1, "split": "val", "log_loss": loss, "accuracy": 0.5}) + "\n")
        time.sleep(pace_s)
    (folder / "checkpoints" / "step-00000010").mkdir(parents=True, exist_ok=True)
    (folder / "checkpoints" / "best.json").write_text(
        json.dumps({"metric": "log_loss", "value": -loss, "step": EPOCHS})
    )
    (folder / "result.json").write_text(json.dumps({"steps": EPOCHS}))


if __name__ == "__main__":
    main()
