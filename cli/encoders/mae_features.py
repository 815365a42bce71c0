"""Features from a masked autoencoder of our own, for prototypes without any other model and for evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mimcl.cli.encoders.encoder import Encoder
from mimcl.model.mae import MaskedAutoencoderViT, to_patches


class MaeFeatures:
    """Mean-pooled patch tokens, or the CLS token, of a model's encoder, where it lies, in the given precision."""

    def __init__(
        self,
        name: str,
        model: MaskedAutoencoderViT,
        precision: Literal["bfloat16", "float32"],
        pool: Literal["mean", "cls"] = "mean",
    ) -> None:
        self.name, self.fit_images, self._pool = name, 0, pool
        self.image_size = model.image_size
        self._model = model
        # On a CPU that multiplies in bfloat16 this takes a third of the time that float32 takes.
        self._autocast = torch.autocast(model.device.type, torch.bfloat16, enabled=precision == "bfloat16")

    @classmethod
    def load(cls, path: Path) -> MaeFeatures:
        """That of a run, checkpoint or file of weights, on the GPU if there is one. Raises CheckpointError."""
        encoder = Encoder.load(path)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return cls(f"mae:{path}", encoder.model().to(device), encoder.config.trainer.precision)

    def fit(self, images: Tensor) -> None:
        """Nothing to learn."""

    def constants(self) -> dict[str, Tensor]:
        """The weights."""
        return self._model.state_dict()

    def restore(self, constants: dict[str, Tensor]) -> None:
        """Nothing was learned."""

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> NDArray[np.float32]:
        """uint8 (B, 3, S, S) to float32 (B, width)."""
        with self._autocast:
            patches = to_patches(images.to(self._model.device), self._model.patch_size)
            return self._model.features(patches, self._pool).float().cpu().numpy()
