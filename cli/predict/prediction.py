"""What a classifier says of an image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of an image with their probabilities; of a bad image none, but an error."""

    image: str  # path, or the path in the source for an image in shards
    classes: tuple[tuple[str, float], ...] = ()
    label: str | None = None  # the true class of an image in shards, if the classifier has it
    error: str | None = None

    @property
    def is_right(self) -> bool | None:
        """Whether the most probable class is the true one; None if that is not known."""
        return self.classes[0][0] == self.label if self.label is not None and self.classes else None

    def line(self) -> str:
        """Return the prediction as a line of text."""
        return "  ".join([self.image, *(f"{name} {100 * probability:.1f} %" for name, probability in self.classes)])

    def json(self) -> dict[str, Any]:
        """Return the prediction for --json, without what the image does not have."""
        if self.error is not None:
            return {"image": self.image, "error": self.error}
        label = {} if self.label is None else {"label": self.label}
        classes = [{"class": name, "probability": probability} for name, probability in self.classes]
        return {"image": self.image, **label, "predictions": classes}
