#!/usr/bin/env python3
"""Compare curricula on CIFAR-10 for as long as there is time: subset, proto and epochs at equal samples.

    python3 tools/evidence.py prepare cifar10 --out evidence/data.tar.xz     where mimcl is installed
    python3 tools/evidence.py run evidence/data.tar.xz --out evidence/gpu    on a CUDA machine (or, slowly, a CPU)

prepare packs a folder with train/ and val/, clusters it (sift features) and writes one file of about 21 MB with shards
and prototypes, so that the checkout with it stays below 64 MB. It takes some 3 minutes on 2 cores.

run trains `cifar_tiny` with `mimcl compare`: images kept decoded, nearest neighbours at the end of each run, seeds in
turn until `--seconds` are over (480). A short run measures the time of a step first, from which follow the epochs that
fit, for `--seeds` seeds at least. After every run, results.jsonl and table.txt are written in `--out`, and the table
is printed: means over seeds, half-widths of Student's 95 % confidence intervals, and differences to the first arm,
paired by seed. Whatever ends it, the same command continues, with the same epochs. Needs torch, timm, numpy, pyarrow,
xxhash, safetensors, typer and pyyaml; neither DALI nor faiss nor webdataset, nor an installed mimcl.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from gpu.links import use_links

SECONDS, SEEDS = 480.0, 3


def main() -> int:
    given = arguments()
    with tempfile.TemporaryDirectory(prefix="evidence-") as folder:
        use_links(Path(folder))
        if given.what == "prepare":
            from gpu.evidence_data import prepare

            prepare(given.images, given.out, given.features, given.k)
            return 0
        from gpu.evidence_run import run

        return run(given.data, given.out, given.seconds, given.seeds, given.epochs, given.most_seeds, given.settings)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_subparsers(dest="what", required=True)
    prepare = what.add_parser("prepare", help="pack images and their prototypes into one file")
    prepare.add_argument("images", type=Path, help="folder with train/ and val/, each with class folders")
    prepare.add_argument("--out", type=Path, default=Path("evidence/data.tar.xz"), help="default: %(default)s")
    prepare.add_argument("--features", default="sift", help="of the prototypes (default: %(default)s)")
    prepare.add_argument("--k", type=int, default=100, help="number of prototypes (default: %(default)s)")
    run = what.add_parser("run", help="train and compare until the time is up")
    run.add_argument("data", type=Path, help="file that prepare wrote, or a folder of shards with prototypes")
    run.add_argument("--out", type=Path, default=Path("evidence/runs"), help="default: %(default)s")
    run.add_argument("--seconds", type=float, default=SECONDS, help="for everything (default: %(default)g)")
    run.add_argument("--seeds", type=int, default=SEEDS, help="that should fit (default: %(default)s)")
    run.add_argument("--epochs", type=float, help="of a run (default: as many as fit)")
    run.add_argument("--most-seeds", type=int, help="end after so many (default: when the time is up)")
    run.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE", help="for all runs")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
