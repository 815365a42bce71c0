"""Features from a masked autoencoder of our own, for prototypes without any other model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mimcl.model import checkpoint
from mimcl.model.mae import ModelConfig, build, normalise


class MaeFeatures:
    """Mean-pooled encoder tokens of a run or checkpoint. Raises CheckpointError when there is none."""

    def __init__(self, path: Path) -> None:
        saved = checkpoint.load(checkpoint.resolve(path))
        config = saved.meta["config"]
        self.name = f"mae:{path}"
        self.image_size = config["data"]["image_size"]
        self._model = build(ModelConfig(**config["model"]), self.image_size, seed=0).eval()
        self._model.load_state_dict({n: t for n, t in saved.tensors.items() if not n.startswith("masker.")})
        self._model.to("cuda" if torch.cuda.is_available() else "cpu")

    def fit(self, images: Tensor) -> None:
        """Nothing to learn."""

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> NDArray[np.float32]:
        """uint8 (B, 3, S, S) to float32 (B, width)."""
        device = self._model.cls_token.device
        return self._model.features(normalise(images.to(device))).float().cpu().numpy()
