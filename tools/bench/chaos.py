"""Kill a small training run at random moments and compare its result with that of an uninterrupted run.

A run resumes from its checkpoint after every kill until it is complete; then the next one begins. After some kills the
newest checkpoint is damaged, as a power cut may do. With several processes one of them is killed, and the others must
exit by themselves.

    python tools/bench/chaos.py --kills 100
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import shlex
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    [
        "mimcl.cli.main",
        "mimcl.cli.run.folder",
        "mimcl.cli.run.supervisor",
        "mimcl.model.trainer",
        "mimcl.pipeline.stream",
    ]
)
_OPTIONS = shlex.split("""--data shards --recipe cpu_small --curriculum proto --decoder reference --seed 3 --epochs 8
    --set data.batch_size=16 --set data.image_size=32 --set model.patch_size=16 --set model.decoder_width=32
    --set model.decoder_depth=1 --set curriculum.share=0.5 --set curriculum.window=64
    --set trainer.checkpoint_every_steps=5 --set trainer.log_every_steps=7""")
_EXIT_TIMEOUT_S = 30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="default 100")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], help="processes of each run, in turn")
    parser.add_argument("--damage", type=float, default=0.15, help="share of kills followed by damage (default 0.15)")
    parser.add_argument("--seed", type=int, default=0, help="default 0")
    arguments = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    rng, counts = random.Random(arguments.seed), Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        make_data()
        wait(start("warm-up", 1))  # the forkserver imports what all processes share
        uninterrupted, seconds = {}, {}
        for size in sorted(set(arguments.processes)):
            started = time.monotonic()
            assert wait(start(f"uninterrupted-{size}", size)) == [0] * size, output()
            seconds[size], uninterrupted[size] = time.monotonic() - started, result(Path(f"uninterrupted-{size}"))
        while counts["kills"] < arguments.kills or counts["incomplete"]:
            size = arguments.processes[counts["runs completed"] % len(arguments.processes)]
            last = counts["kills"] >= arguments.kills
            run_once(size, None if last else rng.uniform(0, 0.8 * seconds[size]), rng, counts, arguments.damage)
            if not counts["incomplete"]:
                counts["runs completed"] += 1
                counts["different results"] += result(Path("killed")) != uninterrupted[size]
                shutil.rmtree("killed")
            progress = f"{counts['kills']} kills, {counts['runs completed']} runs completed"
            print(f"\r{progress}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    for name in (
        "kills", "before the first checkpoint", "while a checkpoint was being written", "of one of several processes",
        "checkpoints damaged", "damaged checkpoints skipped", "runs completed", "different results",
        "processes left hanging", "errors",
    ):  # fmt: skip
        print(f"{name:<40}{counts[name]:>6}")
    print(f"seed {arguments.seed}, runs of {arguments.processes} processes in turn")
    sys.exit(any(counts[name] for name in ("different results", "processes left hanging", "errors")))


def run_once(size: int, kill_after: float | None, rng: random.Random, counts: Counter[str], damage: float) -> None:
    """Start or resume the run and kill it after `kill_after` seconds; None lets it complete."""
    processes, started = start("killed", size), time.monotonic()
    counts["incomplete"] = 1
    while kill_after is not None and time.monotonic() < started + kill_after and all(p.is_alive() for p in processes):
        time.sleep(0.001)
    victim = rng.choice(processes)
    if kill_after is not None:
        victim.kill()  # unless it has just ended
    codes = wait(processes)
    killed = victim.exitcode == -signal.SIGKILL
    counts["kills"] += killed
    counts["of one of several processes"] += killed and size > 1
    counts["damaged checkpoints skipped"] += output().count("; trying the")
    if codes == [0] * size:
        counts["incomplete"] = 0
    elif not killed:
        counts["errors"] += 1
        sys.exit(f"a run ended by itself with exit codes {codes}:\n{output()}")
    counts["processes left hanging"] += codes.count(-signal.SIGALRM)
    checkpoints = sorted(path for path in Path("killed/checkpoints").glob("*") if path.name.isdigit())
    if killed and counts["incomplete"]:
        counts["before the first checkpoint"] += not checkpoints
        counts["while a checkpoint was being written"] += any(Path("killed/checkpoints").glob("*.tmp"))
        if len(checkpoints) > 1 and rng.random() < damage:
            path = rng.choice(sorted(checkpoints[-1].iterdir()))
            content = bytearray(path.read_bytes())
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
            path.write_bytes(content if rng.random() < 0.5 else content[: rng.randrange(len(content))])
            counts["checkpoints damaged"] += 1


def start(out: str, size: int) -> list:
    """Start the same command every time, in `size` processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = []
    for rank in range(size):
        variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
        environment = {name: str(value) for name, value in variables.items()}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        processes.append(_context.Process(target=command, args=(Path.cwd(), out, environment)))
        processes[-1].start()
    return processes


def command(folder: Path, out: str, environment: dict[str, str]) -> None:
    os.chdir(folder)
    os.environ |= environment
    log = os.open(f"rank-{environment['RANK']}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.argv = ["mimcl", "train", *_OPTIONS, "--out", out, "--resume"]
    from mimcl.cli.main import main as mimcl
    from mimcl.model import mae

    mae.SIZES["vit_tiny"] = (64, 2, 2)  # a smaller model trains faster; its quality does not matter here
    mimcl()


def wait(processes: list) -> list[int]:
    """Return the exit codes. When one process has died the others get SIGTERM, as from torchrun, later SIGALRM."""
    died = None
    signals = [(1.0, signal.SIGTERM), (_EXIT_TIMEOUT_S, signal.SIGALRM)]
    while any(process.is_alive() for process in processes):
        if died is None and any(process.exitcode for process in processes):
            died = time.monotonic()
        if died and signals and time.monotonic() > died + signals[0][0]:
            _, number = signals.pop(0)
            for process in processes:
                if process.is_alive():
                    os.kill(process.pid, number)
        time.sleep(0.005)
    return [process.exitcode for process in processes]


def output() -> str:
    return "\n".join(path.read_text() for path in sorted(Path().glob("rank-*.log")))


def result(run: Path) -> tuple[bytes, bytes, list[dict]]:
    """Return what must not differ: weights, draw counts, every line of metrics without its timings."""
    newest = run / "checkpoints" / (run / "checkpoints" / "latest").read_text().strip()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    lines = [{k: v for k, v in line.items() if k not in ("images_per_second", "data_wait")} for line in lines]
    return (newest / "weights.safetensors").read_bytes(), (run / "draw_counts.npy").read_bytes(), lines


def make_data() -> None:
    """Pack 60 smooth random images and build prototypes from their pixels."""
    from mimcl.cli.prototypes.build import BuildConfig, build
    from mimcl.pipeline.shards import PackConfig, pack
    from mimcl.pipeline.sources.folder import image_folder

    rng = np.random.default_rng(0)
    Path("images").mkdir()
    for number in range(60):
        coarse = Image.fromarray(rng.integers(0, 256, (5, 5, 3), np.uint8))
        coarse.resize((48, 48), Image.Resampling.BICUBIC).save(f"images/{number:03d}.jpg")
    pack(image_folder(Path("images")), Path("shards"), PackConfig(workers=1), on_progress=lambda count: None)
    build(Path("shards"), BuildConfig(features="pixels", k=4))


if __name__ == "__main__":
    main()
