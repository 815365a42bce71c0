#!/usr/bin/env python3
"""Check correctness and speed of mimcl on a CUDA machine, in two halves of less than 3.5 minutes each.

    python3 tools/gpu_check.py --only model --row gpu.jsonl     first; works without DALI
    python3 tools/gpu_check.py --only dali --row gpu.jsonl      second; DALI must be importable
    python3 tools/gpu_check.py                                  both, in this order
    python3 tools/gpu_check.py --rehearse [--only HALF]         the same code on the CPU with tiny sizes
                                                                (compiled steps without machine code)
    python3 tools/gpu_check.py --table [FILE]                   print the rows as a table for docs/benchmarks.md

model, 210 s: upper bounds (matrix product, copy within the device); training steps of ViT-B/16, eager, with each
attention kernel, with each masking, compiled per block: images/s, share of the upper bound (MFU), compile time, peak
memory, falling loss; the GPU tests that do not need DALI; steps compiled whole; if time is left, compiled steps of 512
images and of the maskings. Needs torch, torchvision, timm, numpy, xxhash, pyarrow, safetensors; pytest for the tests.

dali, 210 s: generated images of about 118 KB; memory after DALI's pipeline is built; pixels compared with Pillow, one
draw in three batches, and images/s, on the CUDA cores and on the JPEG engine; reading; the whole stream with training;
the GPU tests that need DALI. Needs DALI in addition.

Each result is printed and appended to the row file at once; logs and JUnit files are written beside that file. Parts
run in a separate process: one that fails, hangs or dies is reported, and the next one runs. The exit code is 1 if a
part failed, no time was left for a part that is not optional (compiled steps of 512 images and of the maskings are), or
a correctness goal was missed; missed speed goals do not count. mimcl need not be installed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

from gpu.lines import Line, RowFile, table
from gpu.links import ROOT, environment
from gpu.parts import HALVES
from gpu.runner import Half, NoDevice

ROWS = ROOT / "tools/bench/gpu.jsonl"


def main() -> int:
    options = arguments()
    if options.worker:
        from gpu.worker import work

        return work(json.loads(options.worker))
    if options.table:
        try:
            print(table(options.table), end="")
        except OSError as error:
            print(f"gpu_check: cannot read the rows ({error}); run the check first, or give a file", file=sys.stderr)
            return 2
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that workers and temporary files are cleaned up
    row = options.row.resolve() if options.row else None if options.rehearse else ROWS
    passed = True
    for half in [options.only] if options.only else HALVES:
        try:
            passed &= run(half, row, options)
        except NoDevice:
            print("gpu_check: no CUDA device found; run the same parts on the CPU with --rehearse", file=sys.stderr)
            return 2
    return int(not passed)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(HALVES), help="run one half (default: both)")
    parser.add_argument("--row", type=Path, help="file to append results to (default: tools/bench/gpu.jsonl)")
    parser.add_argument("--limit", type=float, default=210.0, help="seconds for a half (default: 210)")
    parser.add_argument("--rehearse", action="store_true", help="run on the CPU with tiny sizes; rows only with --row")
    parser.add_argument("--table", type=Path, nargs="?", const=ROWS, help="print the rows as Markdown and exit")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser.parse_args()


def run(half: str, row: Path | None, options: argparse.Namespace) -> bool:
    """Run a half; return whether it passed."""
    started = time.monotonic()
    rows = RowFile(row, run=f"{time.strftime('%Y%m%dT%H%M%S')}-{uuid.uuid4().hex[:6]}")

    def on_ready(event: dict[str, Any]) -> None:
        header = {
            "half": half,
            "device": event["device"],
            "cores": len(os.sched_getaffinity(0)),
            "versions": {"driver": driver_version(), **event["versions"]},
            "commit": commit(),
            "date": time.strftime("%Y-%m-%d %H:%M:%S %Z"),
            "missing": event["missing"],
        }
        rows.append(header)
        print("".join(f"{name}: {value}\n" for name, value in header.items()), flush=True)

    def on_line(part: str, line: Line) -> None:
        rows.line(half, part, line)
        print(line, flush=True)

    with tempfile.TemporaryDirectory(prefix="gpu_check-") as temporary:
        folder = Path(temporary)
        variables = environment(folder / "links")
        if options.rehearse:
            variables["OMP_NUM_THREADS"] = "1"  # the operators are tiny; more threads would be slower
        artifacts = row.parent if row else folder
        passed = Half(
            name=half,
            parts=HALVES[half],
            rehearse=options.rehearse,
            seconds=options.limit,
            folder=folder,
            artifacts=artifacts,
            environment=variables,
            on_ready=on_ready,
            on_line=on_line,
        ).run()
    on_line("all", Line(f"time for the half: {half}", time.monotonic() - started, "s"))
    return passed


def commit() -> str:
    """Return the checkout's commit, marked as dirty when files differ from it."""
    return _output(["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"])


def driver_version() -> str:
    return _output(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"])


def _output(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
