"""Damage bytes of everything that training reads; nothing may crash, hang or change silently.

    python tools/bench/fuzz.py --cases 2000 --seed 0

A tiny data set (60 images of 40 px in several shards), its prototype set and a checkpoint are created once. Each case
flips, overwrites, cuts or appends bytes of one file in a copy and opens everything as training does: index, prototypes,
plan, the stream's batches, checkpoint. A case ends as one of:

    named     one of mimcl's errors, in one line
    noticed   the stream reports a bad sample
    harmless  no error, and everything that training uses is unchanged
    SILENT    no error, but something that training uses has changed
    CRASH     any other exception, or the process died
    HANG      no result within --timeout seconds

Exit code 1 unless the last three are 0.
"""

import argparse
import hashlib
import io
import json
import multiprocessing
import os
import pickle
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import wait
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from mimcl.cli.errors import ConfigError
from mimcl.curriculum.config import CurriculumConfig
from mimcl.curriculum.plan import Plan
from mimcl.curriculum.prototypes import PrototypeError, PrototypeSet, build_prototypes
from mimcl.model import checkpoint
from mimcl.model.checkpoint_path import resolve
from mimcl.pipeline.augment import hash64, random_crops
from mimcl.pipeline.batch_shares import BatchShares
from mimcl.pipeline.decode import ReferenceDecoder
from mimcl.pipeline.files import DataError
from mimcl.pipeline.index import ShardIndex
from mimcl.pipeline.packing.finish import write_description
from mimcl.pipeline.packing.jobs import ShardJob, load_packed_shard, pack_shard
from mimcl.pipeline.packing.pack_config import PackConfig
from mimcl.pipeline.packing.resume import packing_plan
from mimcl.pipeline.sources.item import FileItem, Item, Source
from mimcl.pipeline.stream import ReadOptions, Stream
from mimcl.pipeline.verify import verify

IMAGES, BATCH, DRAWS, SEED = 60, 16, 128, 3
OURS = (DataError, PrototypeError, checkpoint.CheckpointError, ConfigError)
OUTCOMES = ("named", "noticed", "harmless", "SILENT", "CRASH", "HANG")
FAILURES = OUTCOMES[3:]


class Noticed(Exception):
    """The stream found a bad sample."""


def make(root: Path) -> None:
    """Write everything that a run reads to `root`."""
    rng = np.random.default_rng(0)
    shards = root / "shards"
    shards.mkdir()
    items: list[Item] = []
    images = root.parent / "images"  # not among the files to damage
    images.mkdir()
    for number in range(IMAGES):
        file = io.BytesIO()
        pixels = rng.integers(0, 256, (5, 5, 3), np.uint8)
        Image.fromarray(pixels).resize((40 + number % 3, 40)).save(file, ("JPEG", "PNG", "WEBP")[number % 3])
        name = f"{number}.img"
        (images / name).write_bytes(file.getvalue())
        items.append(FileItem(name, number % 4 - 1, len(file.getvalue()), images / name))
    half, config = IMAGES // 2, PackConfig()
    jobs = [ShardJob(shards / f"train-{at:06d}.tar", at * half, items[at * half :][:half], config) for at in (0, 1)]
    for job in jobs:
        pack_shard(job, lambda items: None)
    packed = [shard for job in jobs if (shard := load_packed_shard(job.tar))]
    write_description(shards, {"train": packed}, ["a", "b", "c"], packing_plan(Source({"train": items}), config), {})
    for path in (shards / "rejected.jsonl", *shards.glob("*.rows")):
        path.unlink()  # not read by training
    index = ShardIndex.load(shards)
    assert len(index.shards) > 1
    features = rng.normal(size=(IMAGES, 8)).astype(np.float32)
    prototypes = build_prototypes(
        [features], 4, 0, features_name="pixels", features_reason="", index_fingerprint=index.fingerprint
    )
    prototypes.save(shards / "prototypes" / "default")
    tensors = {f"blocks.{n}": torch.from_numpy(rng.normal(size=(8, 8)).astype(np.float32)) for n in range(3)}
    state = {"position": 4096, "optimizers": [{"state": {0: {"step": torch.tensor(7.0)}}}]}
    meta = {
        "position": 4096,
        "config": {"seed": SEED, "data": {"root": "shards", "image_size": 16}},
        "fingerprints": {"index": index.fingerprint, "prototypes": "0" * 32},
        "window": {"number": 3, "digest": "1" * 16},
    }
    for step in (8, 16):
        checkpoint.save(root / "checkpoints", step, tensors, state, meta | {"position": 256 * step}, keep_last=2)


def use_data(root: Path) -> dict[str, bytes]:
    """Return the data that training uses, by name. Raises the errors of opening them, and Noticed."""
    index = ShardIndex.load(root / "shards")
    found = PrototypeSet.load(root / "shards" / "prototypes" / "default", index.fingerprint)
    plan = Plan(
        CurriculumConfig("proto"),
        samples=index.samples,
        distances=found.distance,
        draws=DRAWS,
        batch_size=BATCH,
        seed=SEED,
        hash64=hash64,
    )
    seen = {"distance": found.distance.tobytes(), "cluster": found.cluster.tobytes()}
    return seen | read_stream(plan, index)


def read_stream(plan: Plan, index: ShardIndex) -> dict[str, bytes]:
    """Read every batch of a stream over the plan. Raises Noticed for a bad sample."""
    seen: dict[str, list[bytes]] = {}
    crops = random_crops(SEED)

    def transform(draws, width, height):
        seen.setdefault("sizes", []).append(np.stack([width, height]).tobytes())
        return crops(draws, width, height)

    stream = Stream(
        plan,
        index,
        ReferenceDecoder(16, 1),
        transform,
        BatchShares(BATCH, BATCH),
        ReadOptions(prefetch=1),
        seed=SEED,
    )
    try:
        for batch in stream:
            if len(getattr(batch, "bad", ())):
                raise Noticed(str(batch.bad))
            for name in ("images", "draws", "keys", "sample_ids", "labels", "distances"):
                seen.setdefault(name, []).append(np.ascontiguousarray(getattr(batch, name)).tobytes())
    except DataError as error:
        raise Noticed(str(error)) from error
    return {name: b"".join(parts) for name, parts in seen.items()}


def use_checkpoint(root: Path) -> dict[str, bytes]:
    """Return what a resumed run reads from the newest checkpoint, by name."""
    saved = checkpoint.load(resolve(root))
    weights = {name: tensor.numpy().tobytes() for name, tensor in sorted(saved.tensors.items())}
    used = {key: saved.meta.get(key) for key in ("step", "position", "config", "fingerprints", "window")}
    return weights | {"state": pickle.dumps(_plain(saved.state)), "meta": json.dumps(used).encode()}


def _plain(value):
    """Return the value with tensors as bytes and dictionaries as lists of items."""
    if isinstance(value, torch.Tensor):
        return (str(value.dtype), tuple(value.shape), value.numpy().tobytes())
    if isinstance(value, dict):
        return [(key, _plain(inner)) for key, inner in value.items()]
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def kinds(root: Path) -> dict[str, list[Path]]:
    """Group the files, relative to `root`, by kind."""
    found: dict[str, list[Path]] = {}
    for path in sorted(path.relative_to(root) for path in root.rglob("*") if path.is_file()):
        if path.suffix in (".tar", ".idx"):
            name = f"shards/*{path.suffix}"
        elif path.parts[0] == "checkpoints" and len(path.parts) == 3:
            if path.parts[1] != "00000016":
                continue  # runs resume from the newest one
            name = f"checkpoints/STEP/{path.name}"
        else:
            name = str(path)
        found.setdefault(name, []).append(path)
    return found


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """Return the content with a bit flipped, bytes overwritten or zeroed, its end cut off, or bytes appended."""
    while True:
        changed = bytearray(content)
        place = int(rng.integers(len(content)))
        match rng.choice(["flip", "bytes", "zeros", "cut", "append"], p=[0.6, 0.15, 0.05, 0.15, 0.05]):
            case "flip":
                changed[place] ^= 1 << int(rng.integers(8))
            case "bytes":
                new = rng.bytes(int(rng.integers(1, 17)))
                changed[place : place + len(new)] = new[: len(content) - place]
            case "zeros":
                changed[place : place + 64] = bytes(len(changed[place : place + 64]))
            case "cut":
                del changed[place:]
            case "append":
                changed += rng.bytes(int(rng.integers(1, 600)))
        if changed != content:
            return bytes(changed)


def one_case(root: Path, original: dict[Callable, dict[str, bytes]], seed: int, number: int) -> tuple[str, str, str]:
    """Run case `number`, which depends on `seed` and `number` alone, and restore the file.

    Returns the kind of file, the outcome, and details.
    """
    rng = np.random.default_rng([seed, number])
    files = kinds(root)
    kind = list(files)[number % len(files)]
    path = root / files[kind][int(rng.integers(len(files[kind])))]
    content = path.read_bytes()
    changed = damaged(content, rng)
    path.write_bytes(changed)
    use = use_checkpoint if kind.startswith("checkpoints") else use_data
    try:
        found = use(root)
        if found == original[use]:
            detail = "unseen by verify"
            if use is use_data:
                with suppress(DataError):
                    detail = "seen by verify" if verify(root / "shards", False, 1, lambda count: None) else detail
            return kind, "harmless", detail
        differ = [name for name in original[use] if found.get(name) != original[use][name]]
        return kind, "SILENT", f"{', '.join(differ)} changed"
    except Noticed as error:
        return kind, "noticed", str(error)
    except OURS as error:
        lines = str(error).splitlines()
        return kind, "named" if len(lines) == 1 else "CRASH", str(error)
    except Exception as error:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "mimcl" in frame.filename]
        where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "fuzz.py"
        return kind, "CRASH", f"{where}: {error!r:.300}"
    finally:
        path.write_bytes(content)


def work(pipe, root: Path, seed: int) -> None:
    """Worker process: receives case numbers and sends their outcomes."""
    torch.set_num_threads(1)
    original = {use: use(root) for use in (use_data, use_checkpoint)}
    assert original == {use: use(root) for use in (use_data, use_checkpoint)}  # or differences would mean nothing
    pipe.send(None)
    while True:
        pipe.send(one_case(root, original, seed, pipe.recv()))


class Worker:
    """A process with its own copy of the files; `since` is when it began its current case."""

    def __init__(self, folder: Path, seed: int, count: int) -> None:
        self.root = folder / f"worker-{count}"
        shutil.copytree(folder / "made", self.root)
        context = multiprocessing.get_context("spawn")
        self.pipe, far = context.Pipe()
        self.process = context.Process(target=work, args=(far, self.root, seed), daemon=True)
        self.process.start()
        far.close()
        assert self.pipe.recv() is None
        self.case: int | None = None

    def begin(self, case: int) -> None:
        self.case, self.since = case, time.monotonic()
        self.pipe.send(case)

    def end(self) -> None:
        self.process.kill()
        self.process.join()


def run(cases: range, seed: int, workers: int, timeout: float, folder: Path) -> dict[int, tuple[str, str, str]]:
    """Return the outcome of every case; a worker that hangs or dies is replaced."""
    names = list(kinds(folder / "made"))
    todo, made = iter(cases), 0
    outcomes: dict[int, tuple[str, str, str]] = {}
    pool: list[Worker] = []
    while len(outcomes) < len(cases):
        while len(pool) < min(workers, len(cases) - len(outcomes)):
            pool.append(Worker(folder, seed, made))
            made += 1
        for worker in pool:
            if worker.case is None and (case := next(todo, None)) is not None:
                worker.begin(case)
        ready = wait([worker.pipe for worker in pool if worker.case is not None], timeout=1)
        for worker in list(pool):
            if worker.case is None:
                continue
            kind, outcome = names[worker.case % len(names)], None
            if worker.pipe in ready:
                try:
                    outcome = worker.pipe.recv()
                except EOFError:
                    worker.process.join()
                    outcome = (kind, "CRASH", f"the process died with code {worker.process.exitcode}")
            elif time.monotonic() - worker.since > timeout:
                outcome = (kind, "HANG", f"more than {timeout:g} s")
            if outcome is None:
                continue
            outcomes[worker.case] = outcome
            worker.case = None
            if outcome[1] == "HANG" or not worker.process.is_alive():
                worker.end()
                pool.remove(worker)
    for worker in pool:
        worker.end()
    return outcomes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=2000, help="default 2000")
    parser.add_argument("--seed", type=int, default=0, help="default 0")
    parser.add_argument("--case", type=int, help="run only this case, as listed after a failure")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: one per core)")
    parser.add_argument("--timeout", type=float, default=20.0, help="seconds until a case is a hang (default 20)")
    options = parser.parse_args()
    cases = range(options.cases) if options.case is None else range(options.case, options.case + 1)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        (Path(folder) / "made").mkdir()
        make(Path(folder) / "made")
        outcomes = run(cases, options.seed, options.workers, options.timeout, Path(folder))
    table = Counter((kind, outcome) for kind, outcome, _ in outcomes.values())
    seen = Counter(kind for kind, _, detail in outcomes.values() if detail == "seen by verify")
    print("".join([f"{'file':42}", *(f"{name:>10}" for name in OUTCOMES), f"{'verify sees':>13}"]))
    for kind in dict.fromkeys(kind for kind, _, _ in outcomes.values()):
        counts = "".join(f"{table[kind, outcome]:10}" for outcome in OUTCOMES)
        of_harmless = f"{seen[kind]}/{table[kind, 'harmless']}" if kind.startswith("shards") else ""
        print(f"{kind:42}{counts}{of_harmless:>13}")
    digest = hashlib.sha256(repr(sorted((n, *outcomes[n][:2]) for n in outcomes)).encode()).hexdigest()[:12]
    print(f"{len(outcomes):,} cases of seed {options.seed} in {time.monotonic() - started:.0f} s, outcomes {digest}")
    failures = [(number, *outcomes[number]) for number in sorted(outcomes) if outcomes[number][1] in FAILURES]
    for number, kind, outcome, detail in failures[:40]:
        print(f"--case {number}: {kind}: {outcome}: {detail}")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
