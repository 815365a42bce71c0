"""Extract features with a masked autoencoder, for prototypes and for evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mimcl.cli.encoders.encoder import Encoder
from mimcl.cli.encoders.frozen_model import FrozenModel
from mimcl.model.autoencoder import MaskedAutoencoder
from mimcl.model.mae import to_patches
from mimcl.model.world import World


class MaeFeatures(FrozenModel):
    """Mean-pooled patch tokens, or the CLS token, from the encoder of a model, on the model's device."""

    def __init__(
        self,
        name: str,
        model: MaskedAutoencoder,
        precision: Literal["bfloat16", "float32"],
        pool: Literal["mean", "cls"] = "mean",
    ) -> None:
        super().__init__(model, precision)
        self.name, self._pool = name, pool

    @classmethod
    def load(cls, path: Path) -> MaeFeatures:
        """Load a run, checkpoint or file of weights, on the GPU if there is one. Raises CheckpointError."""
        encoder = Encoder.load(path)
        return cls(f"mae:{path}", encoder.model().to(World().inference_device()), encoder.precision)

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> NDArray[np.float32]:
        """Extract the features, float32 (B, width), of images, uint8 (B, 3, S, S)."""
        with self._autocast:
            patches = to_patches(images.to(self._model.device), self._model.patch_size)
            return self._model.features(patches, self._pool).float().cpu().numpy()
