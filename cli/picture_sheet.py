"""A picture made of images and texts, with positions in inches from the upper left corner."""

from __future__ import annotations

import io
import warnings

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray


class PictureSheet:
    """All images and texts share one pair of axes: one for each of a hundred images takes more than a second."""

    def __init__(self, width: float, height: float) -> None:
        self._figure = Figure(figsize=(width, height))
        FigureCanvasAgg(self._figure)
        self._axes = self._figure.add_axes((0, 0, 1, 1))
        self._axes.set_axis_off()
        self._limits = {"xlim": (0, width), "ylim": (height, 0)}

    def image(self, left: float, top: float, pixels: NDArray[np.uint8], width: float, height: float) -> None:
        """Draw uint8 pixels (h, w, 3)."""
        self._axes.imshow(pixels, extent=(left, left + width, top + height, top), aspect="auto")

    def text(
        self,
        left: float,
        top: float,
        text: str,
        points: int,
        align: str = "center",
        weight: str = "normal",
        colour: str = "black",
    ) -> None:
        """Write text with its upper edge at `top`; `align` is the side of it (or "center") that is at `left`."""
        shown = self._axes.text(left, top, text, fontsize=points, ha=align, va="top", fontweight=weight, color=colour)
        shown.set_parse_math(False)

    def png(self, dpi: int, transparent: bool = False) -> bytes:
        self._axes.set(**self._limits)
        file = io.BytesIO()
        with warnings.catch_warnings(action="ignore"):  # of characters that the font lacks
            self._figure.savefig(file, format="png", dpi=dpi, transparent=transparent)
        return file.getvalue()
