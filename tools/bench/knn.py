"""Time nn and knn (k = 20) at CIFAR-10's size with a ViT-S: 50,000 x 10,000 features of width 384.

    python tools/bench/knn.py

Goal: under 20 s on 2 cores. The features are normally distributed around 10 class centres; "all equal" stands for a
collapsed encoder, where every similarity is a tie.
"""

import argparse
import os
import time

import numpy as np
import torch

from mimcl.model.evaluate.knn import knn

GOAL = 20.0  # seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bank", type=int, default=50_000, help="labelled features to search (default 50000)")
    parser.add_argument("--queries", type=int, default=10_000, help="features to classify (default 10000)")
    parser.add_argument("--width", type=int, default=384, help="dimensions of a feature (default 384)")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, options.bank + options.queries)
    features = rng.standard_normal((len(labels), options.width), np.float32)
    features += 0.2 * rng.standard_normal((10, options.width), np.float32)[labels]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(f"{options.bank:,} x {options.queries:,} features of width {options.width}, {device}, {os.cpu_count()} cores")
    n = options.bank
    for name, rows, goal in (("classes", features, f"goal < {GOAL:g} s"), ("all equal", np.ones_like(features), "-")):
        started = time.perf_counter()
        shares = dict(knn(rows[:n], labels[:n], rows[n:], labels[n:], device=device))
        seconds = time.perf_counter() - started
        found = "  ".join(f"{key} {100 * share:.1f} %" for key, share in shares.items())
        print(f"{name:10} {seconds:6.1f} s   {goal:11}   {found}", flush=True)


if __name__ == "__main__":
    main()
