"""`mimcl` commands in real processes that start fast: forked from one that has already imported everything.

A process gets the variables that torchrun sets (RANK, WORLD_SIZE, MASTER_ADDR, ...), runs a whole command, and may
record the batches that its trainer received. To test torchrun itself, use `torchruns`.
"""

import hashlib
import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

_HEAVY = [
    "mimcl.cli.main",
    "mimcl.cli.train",
    "mimcl.cli.console",
    *(f"mimcl.cli.run.{name}" for name in ("builders", "run_recorder", "online", "health", "summary", "signals")),
    "mimcl.model.trainer",
    "mimcl.pipeline.stream",
    "mimcl.pipeline.dali",
    "mimcl.curriculum.masking.factory",
    "torch.utils.tensorboard",
    "timm",
    "helpers.ranks",
]
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(_HEAVY)

MOST_PATCHES = 64  # a recorded mask with fewer is repeated, since all rows have one length


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def do_nothing() -> None:
    """Do nothing before the command."""


def shrink_model() -> None:
    """Make vit_tiny 20 times smaller, for tests in which the quality of the model does not matter.

    Stretches become shorter as well, so that windows of a few batches have several with order "shard".
    """
    from mimcl.curriculum import shard_order
    from mimcl.model import mae

    mae.SIZES["vit_tiny"] = (64, 2, 2)
    shard_order.STRETCH = 24


def shrink_model_and_keep_checkpoints() -> None:
    """Shrink the model and never skip a checkpoint, for tests that look at one after the first."""
    import pytest

    from helpers.small_runs import keep_every_checkpoint

    shrink_model()
    keep_every_checkpoint(pytest.MonkeyPatch())


def start(
    folder: Path,
    *arguments: str,
    size: int = 1,
    seen: Path | None = None,
    before: Callable[[], None] = do_nothing,
    **environment: str,
) -> list:
    """Start `mimcl ARGUMENTS` in `folder`, in `size` processes that train together; output goes to FOLDER/rank-N.log.

    With `seen`, rank N records its batches in SEEN/N.npz. `before` is called in each process before the command.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the server, and so of all its children
    port = str(free_port())
    processes = []
    for rank in range(size):
        numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
        variables = {name: str(value) for name, value in numbers.items()} | {"HF_HUB_OFFLINE": "1"} | environment
        if size > 1:
            variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        command = (folder, arguments, variables, seen, before)
        process = _context.Process(target=_command, args=command, name=f"rank {rank}")
        process.start()
        processes.append(process)
    return processes


def finish(folder: Path, processes: list, code: int = 0, timeout: float = 120) -> None:
    """Wait for all processes, which must exit with `code`; kill any that is left."""
    deadline = time.monotonic() + timeout
    try:
        for process in processes:
            process.join(max(0, deadline - time.monotonic()))
        codes = [process.exitcode for process in processes]
        assert codes == [code] * len(processes), f"exit codes {codes}\n" + output(folder, len(processes))
    finally:
        for process in processes:
            process.kill()


def run(folder: Path, *arguments: str, code: int = 0, **options) -> None:
    """Start the command and wait for it."""
    finish(folder, start(folder, *arguments, **options), code)


def output(folder: Path, size: int = 1) -> str:
    """Return the output of the processes started last."""
    return "\n".join(f"--- rank {rank}\n" + (folder / f"rank-{rank}.log").read_text() for rank in range(size))


def received(seen: Path) -> dict[str, np.ndarray]:
    """Return the batches of all ranks, one row per draw in order; every draw went to exactly one rank."""
    ranks = [dict(np.load(path, allow_pickle=False)) for path in sorted(seen.glob("*.npz"))]
    weights = {rank.pop("weights").item() for rank in ranks}
    assert len(weights) == 1, "the ranks ended with different weights"
    joined = {name: np.concatenate([rank[name] for rank in ranks]) for name in ranks[0]}
    order = np.argsort(joined["draws"], kind="stable")
    joined = {name: column[order] for name, column in joined.items()}
    assert (np.diff(joined["draws"]) == 1).all()
    return joined


def _command(
    folder: Path,
    arguments: tuple[str, ...],
    environment: dict[str, str],
    seen: Path | None,
    before: Callable[[], None],
) -> None:
    os.chdir(folder)
    os.environ.update(environment)
    log = os.open(f"rank-{environment['RANK']}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.argv = ["mimcl", *arguments]
    from mimcl.cli.main import main

    before()
    write = _spy() if seen else None
    try:
        main()
    finally:
        if write:
            write(seen / f"{environment['RANK']}.npz")


def _spy():
    """Record batches, crops and masks of the trainer; return the function that writes them to a file."""
    from mimcl.cli.run import builders, health

    columns = {name: [] for name in ("draws", "sample_ids", "keys", "losses", "boxes", "flips", "masks")}
    crops, masks, trainers = {}, {}, []  # crops by draw, masks by key
    random_crops, make_masker = builders.random_crops, builders.make_masker

    def seen_crops(seed):
        transform = random_crops(seed)

        def crop(draws, width, height):
            boxes, flips = transform(draws, width, height)
            crops.update((draw, (box, flip)) for draw, box, flip in zip(draws.tolist(), boxes, flips, strict=True))
            return boxes, flips

        return crop

    def seen_masker(*arguments, **options):
        masker = make_masker(*arguments, **options)
        propose = masker.propose

        def recording(images, keys, model, progress):
            mask = propose(images, keys, model, progress)
            masks.update(zip(keys.tolist(), mask.mask.to(bool).numpy(), strict=True))
            return mask

        masker.propose = recording
        return masker

    class SeenTrainer(builders.Trainer):
        def steps(self, *arguments):
            trainers.append(self)
            return super().steps(*arguments)

    class SeenHealth(health.Health):
        def observe(self, batch, per_sample_loss):
            super().observe(batch, per_sample_loss)
            crop = [crops[draw] for draw in batch.draws.tolist()]
            row = (batch.draws, batch.sample_ids, batch.keys, per_sample_loss, *map(np.array, zip(*crop, strict=True)))
            row += (np.array([np.resize(masks[key], MOST_PATCHES) for key in batch.keys.tolist()]),)
            for column, values in zip(columns.values(), row, strict=True):
                column.append(np.array(values))

    builders.random_crops, builders.make_masker = seen_crops, seen_masker
    builders.Trainer, health.Health = SeenTrainer, SeenHealth

    def write(path):
        digest = hashlib.sha256()
        for tensor in trainers[0].tensors().values():
            digest.update(tensor.numpy().tobytes())
        path.parent.mkdir(exist_ok=True)
        np.savez(path, weights=digest.hexdigest(), **{name: np.concatenate(c) for name, c in columns.items()})

    return write
