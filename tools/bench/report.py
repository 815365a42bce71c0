"""Time the report of a long run and measure its size: 100,000 steps, all logged, 800 classes.

    python tools/bench/report.py [STEPS] [RECIPE]

The run's metrics, draw counts, data set and 4 checkpoints of the recipe's model (cpu_small) are generated; nothing is
trained. Exit code 1 above 20 s or 5 MB.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests")]

from helpers.images import write_classes  # noqa: E402
from helpers.run_folders import long_run, save  # noqa: E402

from mimcl.cli.encoders.restore import restore_model  # noqa: E402
from mimcl.cli.recipes import recipe  # noqa: E402
from mimcl.pipeline.dataset_json import read_dataset  # noqa: E402

CLASSES, IMAGES_PER_CLASS = 800, 3
MAX_SECONDS, MAX_BYTES = 20.0, 5_000_000


def main() -> int:
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    mimcl = [sys.executable, "-m", "mimcl.cli.main"]
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        write_classes(home / "images", {f"class-{number:04d}": IMAGES_PER_CLASS for number in range(CLASSES)})
        subprocess.run([*mimcl, "shard", "images", "--out", "shards"], cwd=home, check=True)
        config = recipe(sys.argv[2] if len(sys.argv) > 2 else "cpu_small")
        run = long_run(home / "run", steps, CLASSES * IMAGES_PER_CLASS, recipe=config)
        fingerprint = read_dataset(home / "shards")["splits"]["train"]["fingerprint"]
        for quarter in (1, 2, 3, 4):
            save(run, quarter * steps // 4, config, fingerprint, restore_model(config, None).state_dict())
        lines = (run / "metrics.jsonl").read_bytes().count(b"\n")
        size = (run / "metrics.jsonl").stat().st_size
        started = time.perf_counter()
        subprocess.run([*mimcl, "report", "run"], cwd=home, check=True, env=os.environ)
        seconds = time.perf_counter() - started
        written = (run / "report.html").stat().st_size
        several = [long_run(home / f"run-{number}", steps, CLASSES * IMAGES_PER_CLASS) for number in range(2)]
        started = time.perf_counter()
        subprocess.run([*mimcl, "report", *(path.name for path in several)], cwd=home, check=True)
        both = time.perf_counter() - started
    figures = {"steps": steps, "lines": lines, "metrics_mb": size / 1e6, "seconds": seconds, "report_mb": written / 1e6}
    print(json.dumps({key: round(value, 2) for key, value in figures.items()} | {"two_runs_seconds": round(both, 2)}))
    return 0 if seconds < MAX_SECONDS and written < MAX_BYTES else 1


if __name__ == "__main__":
    sys.exit(main())
