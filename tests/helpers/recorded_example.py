"""A program whose loaders are recorded, and that kills itself with SIGKILL at an exact batch.

    python recorded_example.py FOLDER KILL_AT PROGRAM ARGUMENTS

For each batch a line "LENGTH DRAW SAMPLE_ID" a draw is appended to FOLDER/drawn-RANK.txt, where LENGTH is that of the
loader. Scores that a loader begins with are in FOLDER/scores.npy, and each draw's correlation between the two views, as
grey images, in FOLDER/views.txt. KILL_AT is the step whose batch is the last one that is recorded; "never" is none.
"""

import os
import runpy
import signal
import sys
from pathlib import Path

import numpy as np
import torch

from mimcl.api import Loader


def main(folder: Path, kill_at: str) -> None:
    given, batches = Loader.__init__, Loader.__iter__
    given.__kwdefaults__["decoder"] = "reference"  # starts fastest
    rank = os.environ.get("RANK", "0")

    def init(self, *arguments, **options):
        given(self, *arguments, **options)
        if (scores := options.get("scores")) is not None:
            np.save(folder / "scores.npy", scores.cpu().numpy())

    def recorded(self):
        for batch in batches(self):
            draws = zip(batch.draws.tolist(), batch.sample_ids.tolist(), strict=True)
            with open(folder / f"drawn-{rank}.txt", "a") as file:
                file.write("".join(f"{len(self)} {draw} {sample_id}\n" for draw, sample_id in draws))
            if batch.images.ndim == 5:
                with open(folder / "views.txt", "a") as file:
                    np.savetxt(file, correlations(*batch.images.mean(2).flatten(2)))
            if str(batch.step) == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            yield batch

    Loader.__init__, Loader.__iter__ = init, recorded
    runpy.run_path(sys.argv[0], run_name="__main__")


def correlations(first: torch.Tensor, second: torch.Tensor) -> np.ndarray:
    centred = (view - view.mean(1, keepdim=True) for view in (first, second))
    return torch.cosine_similarity(*centred).numpy()


if __name__ == "__main__":
    _, folder, kill_at, *sys.argv = sys.argv
    main(Path(folder), kill_at)
