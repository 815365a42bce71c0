"""The picture of `mimcl masks`: a row per image, a group of columns per checkpoint."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mimcl.cli.encoders.reconstruction import Reconstruction
from mimcl.cli.heat_maps import heat_maps, tinted
from mimcl.cli.picture_sheet import PictureSheet

DPI = 200
CELL, GAP, GROUP_GAP, MARGIN, LINE = 1.0, 0.04, 0.22, 0.15, 0.15  # inches
_LARGE, _SMALL = 9, 7  # points
_NOTE = (
    "Scores: higher = more likely masked. Colours range from the lowest to the highest score of each image; the "
    "numbers at the ends of the bar are the averages of these two over the images."
)


class Snapshot(NamedTuple):
    """Masks and reconstructions of the crops at one checkpoint."""

    step: int
    epoch: float
    reconstruction: Reconstruction


def draw_picture(title: str, crops: Tensor, snapshots: Sequence[Snapshot]) -> bytes:
    """Draw uint8 crops (n, 3, S, S) with masks, reconstructions and, if the masker has any, scores, as PNG."""
    groups = [panels(crops, snapshot.reconstruction) for snapshot in snapshots]
    widths = [len(group) * (CELL + GAP) - GAP for group in groups]
    width = 2 * MARGIN + CELL + sum(GROUP_GAP + group for group in widths)
    title, title_lines = _wrapped(title, width - 2 * MARGIN, _LARGE)
    note, note_lines = _wrapped(_NOTE, width - 2 * MARGIN, _SMALL)

    headings = MARGIN + (title_lines + 0.5) * LINE
    first_row = headings + (2.5 + any(snapshot.reconstruction.stage for snapshot in snapshots)) * LINE
    below = first_row + len(crops) * (CELL + GAP)
    with_scores = any("scores" in group for group in groups)
    sheet = _Sheet(width, below + MARGIN + with_scores * (2 + note_lines) * LINE)
    sheet.text(MARGIN, MARGIN, title, _LARGE, "left")
    left = MARGIN
    sheet.column(left, first_row, "crop", _pixels(crops))
    left += CELL + GROUP_GAP
    for snapshot, group, group_width in zip(snapshots, groups, widths, strict=True):
        middle = left + group_width / 2
        sheet.text(middle, headings, f"step {snapshot.step:,} · epoch {snapshot.epoch:,.1f}", _LARGE, weight="bold")
        sheet.text(middle, headings + 1.2 * LINE, snapshot.reconstruction.stage.replace("_", " "), _SMALL)
        for name, images in group.items():
            sheet.column(left, first_row, name, images)
            if name == "scores" and snapshot.reconstruction.scores is not None:
                sheet.colour_bar(left, below + 0.03, snapshot.reconstruction.scores)
            left += CELL + GAP
        left += GROUP_GAP - GAP
    if with_scores:
        sheet.text(MARGIN, below + 2 * LINE, note, _SMALL, "left")
    return sheet.png(DPI)


def panels(crops: Tensor, found: Reconstruction) -> dict[str, NDArray[np.uint8]]:
    """Return the columns of a group by name, each (n, S, S, 3)."""
    drawn = {} if found.scores is None else {"scores": heat_maps(crops, found.scores.numpy())}
    return drawn | {"mask": _pixels(found.seen), "reconstruction": _pixels(found.filled)}


def _pixels(images: Tensor) -> NDArray[np.uint8]:
    return images.permute(0, 2, 3, 1).numpy()


def _wrapped(text: str, inches: float, points: int) -> tuple[str, int]:
    """Wrap the text to a width; also return the number of lines."""
    lines = textwrap.wrap(text, int(inches * 72 / (0.55 * points)))
    return "\n".join(lines), len(lines)


class _Sheet(PictureSheet):
    def column(self, left: float, top: float, name: str, images: NDArray[np.uint8]) -> None:
        """Draw images (n, S, S, 3) below one another, with their name above."""
        self.text(left + CELL / 2, top - 0.9 * LINE, name, _SMALL)
        for row, image in enumerate(images):
            self.image(left, top + row * (CELL + GAP), image, CELL, CELL)

    def colour_bar(self, left: float, top: float, scores: Tensor) -> None:
        """Draw the colour bar of scores (n, h, h)."""
        self.image(left, top, tinted(np.linspace(0, 1, 256)[None], 0.5), CELL, 0.08)
        for end, place, align in ((scores.amin, left, "left"), (scores.amax, left + CELL, "right")):
            self.text(place, top + 0.1, f"{end((1, 2)).mean().item():.2g}", _SMALL, align)
