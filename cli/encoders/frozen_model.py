"""What features and losses of a trained model have in common: nothing is learned from the images."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from mimcl.model.autoencoder import MaskedAutoencoder


class FrozenModel:
    """A trained model that measures images, on its own device, in the given precision."""

    fit_images = 0

    def __init__(self, model: MaskedAutoencoder, precision: Literal["bfloat16", "float32"]) -> None:
        self.image_size, self.precision = model.image_size, precision
        self._model = model
        # On a CPU with bfloat16 instructions this takes a third of the time of float32.
        self._autocast = torch.autocast(model.device.type, torch.bfloat16, enabled=precision == "bfloat16")

    def fit(self, images: Tensor) -> None:
        """Do nothing: the weights are learned already."""

    def constants(self) -> dict[str, Tensor]:
        """Return the weights."""
        return self._model.state_dict()

    def restore(self, constants: dict[str, Tensor]) -> None:
        """Do nothing: fit() learned nothing."""
