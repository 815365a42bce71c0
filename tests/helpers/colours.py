"""Images whose class is their colour."""

from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {"blue": (40, 60, 200), "green": (50, 180, 60), "red": (210, 50, 40)}


def write_colours(folder: Path, count: int, *, seed: int = 0, shuffled: bool = False, colours: dict = COLOURS) -> None:
    """Write `count` noisy squares of each colour to the folder of its name; `shuffled`: to random folders."""
    rng = np.random.default_rng(seed)
    names = np.repeat(list(colours), count)
    for number, (name, into) in enumerate(zip(names, rng.permutation(names) if shuffled else names, strict=True)):
        pixels = np.array(colours[name]) + rng.integers(-30, 31, (24, 24, 3))
        (folder / into).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / into / f"{number:04d}.png")


def write_split_colours(folder: Path, train: int, val: int, *, shuffled: bool = False) -> None:
    """Write train/ and val/; `shuffled` applies to train only."""
    write_colours(folder / "train", train, seed=1, shuffled=shuffled)
    write_colours(folder / "val", val, seed=2)
