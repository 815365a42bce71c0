"""Kills a small training run at random moments, again and again, and compares what it ends with to an unbroken run.

A run goes on from its checkpoint after every kill, until it is through; then the next one begins. Some kills are
followed by damage to the newest checkpoint, as a power cut may do. With several processes one of them is killed, and
the others have to leave by themselves.

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
_LEAVING_SECONDS = 30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], help="of the runs, in turn")
    parser.add_argument("--damage", type=float, default=0.15, help="share of kills followed by damage")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    chance, counts = random.Random(arguments.seed), Counter()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        make_data()
        outcome(start("warm-up", 1))  # the server imports what all processes share
        unbroken, seconds = {}, {}
        for size in sorted(set(arguments.processes)):
            started = time.monotonic()
            assert outcome(start(f"unbroken-{size}", size)) == [0] * size, words()
            seconds[size], unbroken[size] = time.monotonic() - started, result(Path(f"unbroken-{size}"))
        while counts["kills"] < arguments.kills or counts["under way"]:
            size = arguments.processes[counts["runs"] % len(arguments.processes)]
            last = counts["kills"] >= arguments.kills
            one_life(size, None if last else chance.uniform(0, 0.8 * seconds[size]), chance, counts, arguments.damage)
            if not counts["under way"]:
                counts["runs"] += 1
                counts["divergences"] += result(Path("broken")) != unbroken[size]
                shutil.rmtree("broken")
            print(f"\r{counts['kills']} kills, {counts['runs']} runs through", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    for name in (
        "kills", "before the first checkpoint", "while a checkpoint was being written", "of one of several processes",
        "checkpoints damaged", "damaged checkpoints skipped", "runs through", "divergences", "processes left hanging",
        "errors",
    ):  # fmt: skip
        print(f"{name:<40}{counts['runs' if name == 'runs through' else name]:>6}")
    print(f"seed {arguments.seed}, runs of {arguments.processes} processes in turn")
    sys.exit(any(counts[name] for name in ("divergences", "processes left hanging", "errors")))


def one_life(size: int, until: float | None, chance: random.Random, counts: Counter, damage: float) -> None:
    """Starts or goes on with the run, and kills it after `until` seconds; None lets it end."""
    processes, started = start("broken", size), time.monotonic()
    counts["under way"] = 1
    while until is not None and time.monotonic() < started + until and all(p.is_alive() for p in processes):
        time.sleep(0.001)
    victim = chance.choice(processes)
    if until is not None:
        victim.kill()  # unless it has just ended
    codes = outcome(processes)
    killed = victim.exitcode == -signal.SIGKILL
    counts["kills"] += killed
    counts["of one of several processes"] += killed and size > 1
    said = words()
    counts["damaged checkpoints skipped"] += said.count("trying the one before")
    if codes == [0] * size:
        counts["under way"] = 0
    elif not killed:
        counts["errors"] += 1
        sys.exit(f"a run ended by itself with {codes}:\n{said}")
    counts["processes left hanging"] += codes.count(-signal.SIGALRM)
    checkpoints = sorted(path for path in Path("broken/checkpoints").glob("*") if path.name.isdigit())
    if killed and counts["under way"]:
        counts["before the first checkpoint"] += not checkpoints
        counts["while a checkpoint was being written"] += any(Path("broken/checkpoints").glob("*.tmp"))
        if len(checkpoints) > 1 and chance.random() < damage:
            path = chance.choice(sorted(checkpoints[-1].iterdir()))
            content = bytearray(path.read_bytes())
            content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
            path.write_bytes(content if chance.random() < 0.5 else content[: chance.randrange(len(content))])
            counts["checkpoints damaged"] += 1


def start(out: str, size: int) -> list:
    """The same command every time, in `size` processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = []
    for rank in range(size):
        places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
        environment = {name: str(value) for name, value in places.items()}
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

    mae.SIZES["vit_tiny"] = (64, 2, 2)  # what is trained does not matter here, only that it is
    mimcl()


def outcome(processes: list) -> list[int]:
    """Exit codes. As torchrun does, the others get SIGTERM when one has died; SIGALRM who is still there long after."""
    died = None
    signals = [(1.0, signal.SIGTERM), (_LEAVING_SECONDS, signal.SIGALRM)]
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


def words() -> str:
    return "\n".join(path.read_text() for path in sorted(Path().glob("rank-*.log")))


def result(run: Path) -> tuple[bytes, bytes, list[dict]]:
    """What must not differ: weights, draw counts, every line of metrics but those of the clock."""
    newest = run / "checkpoints" / (run / "checkpoints" / "latest").read_text().strip()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    lines = [{k: v for k, v in line.items() if k not in ("images_per_second", "data_wait")} for line in lines]
    return (newest / "weights.safetensors").read_bytes(), (run / "draw_counts.npy").read_bytes(), lines


def make_data() -> None:
    """60 soft random images, packed, with prototypes from their pixels."""
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
