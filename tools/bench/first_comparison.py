"""CIFAR-10 with `cifar_tiny`: plain MAE two ways, the prototype curriculum and its negative control, by nn and knn.

    mimcl shard cifar10/
    mimcl prototypes build
    python tools/bench/first_comparison.py shards --epochs 6 --seeds 0

All arms of a seed make the same number of draws from the same initial weights. A run that was stopped goes on when the
script is called again. After every run tools/bench/first_comparison.md is written anew, with what is there so far.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from mimcl.cli.evaluate.knn import knn
from mimcl.cli.evaluate.results import Result

MIMCL = str(Path(sys.executable).with_name("mimcl"))
TABLE = Path(__file__).with_suffix(".md")
ARMS = {
    "uniform, with replacement": ["--curriculum", "none", "--set", "curriculum.uniform=replacement"],
    "uniform, plain epochs": ["--curriculum", "none"],
    "proto (typical first)": ["--curriculum", "proto"],
    "anti (far first)": ["--curriculum", "anti"],
}


def train(arm: str, shards: Path, folder: Path, epochs: float, seed: int) -> float:
    """Trains one arm, or what is left of it; seconds."""
    shared = ["--recipe", "cifar_tiny", "--data", str(shards), "--epochs", str(epochs), "--seed", str(seed)]
    started = time.perf_counter()
    subprocess.run([MIMCL, "train", *shared, *ARMS[arm], "--out", str(folder), "--resume"], check=True)
    return time.perf_counter() - started


def cell(shares: list[float], error: float) -> str:
    """Mean of the seeds, their standard deviation when there are several, else the standard error of the one share."""
    spread = statistics.stdev(shares) if len(shares) > 1 else error
    return f"{100 * statistics.mean(shares):.1f} ± {100 * spread:.1f}"


def write(found: dict[str, list[Result]], options: argparse.Namespace) -> None:
    first = next(iter(found.values()))[0]
    prototypes = json.loads((options.shards / "prototypes/default/prototypes.json").read_text())
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores"
    seeds = ", ".join(map(str, options.seeds))
    spread = "standard deviation over the seeds" if len(options.seeds) > 1 else "standard error of one run"
    lines = [
        "# First comparison",
        "",
        f"`cifar_tiny`, {options.epochs:g} epochs of {first.train:,} images for every arm, seed {seeds}; "
        f"{prototypes['k']} prototypes from {prototypes['features']} features. Percent of {first.val:,} val "
        f"images, ± the {spread}. On {device}. Written by `tools/bench/first_comparison.py`.",
        "",
        "| arm | runs | nn | knn, k = 20 |",
        "|---|---|---|---|",
    ]
    rows = {arm: [result.trained for result in results] for arm, results in found.items()}
    rows["untrained"] = [result.untrained for result in max(found.values(), key=len)]
    for arm, shares in rows.items():
        cells = [cell([share[key] for share in shares], first.standard_error(shares[0][key])) for key in ("nn", "knn")]
        lines.append(f"| {arm} | {len(shares)} | {cells[0]} | {cells[1]} |")
    TABLE.write_text("\n".join(lines) + "\n")
    print(TABLE.read_text(), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", type=Path, help="packed CIFAR-10 with prototypes")
    parser.add_argument("--epochs", type=float, default=6)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, default=Path("runs/first_comparison"), help="where the runs go")
    options = parser.parse_args()
    found: dict[str, list[Result]] = {}
    for seed in options.seeds:
        for number, arm in enumerate(ARMS):
            folder = options.out / f"seed-{seed}-arm-{number}"
            seconds = train(arm, options.shards, folder, options.epochs, seed)
            found.setdefault(arm, []).append(knn(folder, options.shards))
            print(f"{arm}, seed {seed}: {seconds:.0f} s of training", flush=True)
            write(found, options)


if __name__ == "__main__":
    main()
