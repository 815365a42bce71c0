"""A training loop with scores that move, as a program would write it: run under torchrun, killed, and run again.

    python scored_loop.py SHARDS FOLDER [--kill-at BATCH]

Each process appends a line of its draws and sample ids for each batch to FOLDER/drawn-RANK-OF-SIZE.txt; rank 0 saves
the loader's state in FOLDER/state.pt after every third batch. Scores change after every batch, by what is known of all
its images.
"""

import argparse
import os
import signal
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from mimcl.api import Loader
from mimcl.pipeline.files import atomic_file

BATCH, SAVED_EVERY = 12, 3


def new_scores(sample_ids: np.ndarray, batch: int) -> np.ndarray:
    return np.sin(sample_ids * (batch + 1.0)).astype(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shards")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kill-at", type=int)
    given = parser.parse_args()
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    rank, size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    samples = np.arange(Loader(given.shards, batch_size=BATCH, rank=0, world_size=1).samples)
    loader = Loader(
        given.shards,
        batch_size=BATCH,
        image_size=16,
        epochs=8,
        scores=new_scores(samples, -3) if rank == 0 else None,
        decoder="reference",
    )
    if (state := given.folder / "state.pt").exists():
        loader.load_state_dict(torch.load(state, weights_only=True))
    with open(given.folder / f"drawn-{rank}-of-{size}.txt", "a") as drawn:
        for batch in loader:
            number = int(batch.draws[0]) // BATCH
            drawn.write("".join(f"{g} {i}\n" for g, i in zip(batch.draws, batch.sample_ids, strict=True)))
            drawn.flush()
            if number == given.kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            # Each rank could give the same; here rank 0 gives them, for all images of some classes.
            changed = samples[number % 5 :: 5] if rank == 0 else None
            loader.update_scores(changed, None if changed is None else new_scores(changed, number))
            if rank == 0 and number % SAVED_EVERY == 0:
                with atomic_file(state) as file:
                    torch.save(loader.state_dict(), file)
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
