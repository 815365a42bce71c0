"""`mimcl` commands in real processes that start in no time: forked from one that has already imported everything.

A process gets what torchrun would give it (RANK, WORLD_SIZE, MASTER_ADDR, ...), runs a whole command, and may write
down what its trainer was really fed. Where torchrun itself is the subject, start torchrun.
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
    *(f"mimcl.cli.run.{name}" for name in ("folder", "recorder", "health", "summary", "signals")),
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


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def nothing() -> None:
    """For processes that need no preparation."""


def shrink_model() -> None:
    """Makes vit_tiny a twentieth of its size, for tests in which only its being trained matters.

    Stretches as well: of order "shard", a window of some batches has several.
    """
    from mimcl.curriculum import shard_order
    from mimcl.model import mae

    mae.SIZES["vit_tiny"] = (64, 2, 2)
    shard_order.STRETCH = 24


def shrink_model_and_keep_checkpoints() -> None:
    """For tests that look at a checkpoint which is not the first."""
    import pytest

    from helpers.small_runs import keep_every_checkpoint

    shrink_model()
    keep_every_checkpoint(pytest.MonkeyPatch())


def start(
    folder: Path,
    *arguments: str,
    size: int = 1,
    seen: Path | None = None,
    before: Callable[[], None] = nothing,
    **environment: str,
) -> list:
    """`mimcl ARGUMENTS` in `folder`, in `size` processes that train together; each writes to FOLDER/rank-N.log.

    With `seen`, rank N leaves there in N.npz what it was fed. `before` is called in each process before the command.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the server, and so of all its children
    port = str(free_port())
    processes = []
    for rank in range(size):
        places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
        given = {name: str(value) for name, value in places.items()} | {"HF_HUB_OFFLINE": "1"} | environment
        if size > 1:
            given |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        process = _context.Process(target=_command, args=(folder, arguments, given, seen, before), name=f"rank {rank}")
        process.start()
        processes.append(process)
    return processes


def finish(folder: Path, processes: list, code: int = 0, timeout: float = 120) -> None:
    """Waits for all of them; they must end with `code`. None is left behind, whatever happens."""
    deadline = time.monotonic() + timeout
    try:
        for process in processes:
            process.join(max(0, deadline - time.monotonic()))
        codes = [process.exitcode for process in processes]
        assert codes == [code] * len(processes), f"exit codes {codes}\n" + said(folder, len(processes))
    finally:
        for process in processes:
            process.kill()


def run(folder: Path, *arguments: str, code: int = 0, **options) -> None:
    """Starts and finishes."""
    finish(folder, start(folder, *arguments, **options), code)


def said(folder: Path, size: int = 1) -> str:
    """What the processes that were started last have printed."""
    return "\n".join(f"--- rank {rank}\n" + (folder / f"rank-{rank}.log").read_text() for rank in range(size))


def fed(seen: Path) -> dict[str, np.ndarray]:
    """What all ranks were fed, a row a draw, in order of the draws; every draw went to one rank, once."""
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
    """Looks over the shoulder of the program's own parts; gives the function that writes down what was seen."""
    from mimcl.cli.run import health
    from mimcl.curriculum.masking import factory
    from mimcl.model import trainer
    from mimcl.pipeline import augment

    columns = {name: [] for name in ("draws", "sample_ids", "keys", "losses", "boxes", "flips", "masks")}
    crops, masks, trainers = {}, {}, []  # of draws, of mask keys
    random_crops, make_masker = augment.random_crops, factory.make_masker

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

        def noting(images, keys, model, progress):
            mask = propose(images, keys, model, progress)
            masks.update(zip(keys.tolist(), mask.mask.to(bool).numpy(), strict=True))
            return mask

        masker.propose = noting
        return masker

    class SeenTrainer(trainer.Trainer):
        def run(self, *arguments):
            trainers.append(self)
            return super().run(*arguments)

    class SeenWatch(health.Watch):
        def observe(self, batch, per_sample_loss):
            super().observe(batch, per_sample_loss)
            crop = [crops[draw] for draw in batch.draws.tolist()]
            row = (batch.draws, batch.sample_ids, batch.keys, per_sample_loss, *map(np.array, zip(*crop, strict=True)))
            row += (np.array([masks[key] for key in batch.keys.tolist()]),)
            for column, values in zip(columns.values(), row, strict=True):
                column.append(np.array(values))

    augment.random_crops, factory.make_masker = seen_crops, seen_masker
    trainer.Trainer, health.Watch = SeenTrainer, SeenWatch

    def write(path):
        digest = hashlib.sha256()
        for tensor in trainers[0].tensors().values():
            digest.update(tensor.numpy().tobytes())
        path.parent.mkdir(exist_ok=True)
        np.savez(path, weights=digest.hexdigest(), **{name: np.concatenate(c) for name, c in columns.items()})

    return write
