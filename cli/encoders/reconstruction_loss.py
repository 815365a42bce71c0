"""How badly a masked autoencoder reconstructs each image: a difficulty of images without prototypes."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mimcl.cli.encoders.encoder import Encoder
from mimcl.cli.encoders.frozen_model import FrozenModel
from mimcl.curriculum.masking.random import RandomMasker
from mimcl.model.autoencoder import MaskedAutoencoder, removed_patches
from mimcl.model.checkpoint import CheckpointError
from mimcl.model.mae import reconstruction_loss, to_patches
from mimcl.pipeline.augment import STREAM_MASK, hash64
from mimcl.pipeline.stream import Batch

MASKS = 4  # of each image


class ReconstructionLoss(FrozenModel):
    """The mean loss of an image's central crop over random masks, which depend on the seed and the image's row alone.

    Mask m of row i has the key that draw i * MASKS + m of a run with this seed has.
    """

    def __init__(
        self, model: MaskedAutoencoder, precision: Literal["bfloat16", "float32"], mask_ratio: float, seed: int
    ) -> None:
        super().__init__(model, precision)
        self.mask_ratio, self.masks, self._seed = mask_ratio, MASKS, seed
        self._masker = RandomMasker(model.num_patches, mask_ratio)

    @classmethod
    def of(cls, encoder: Encoder, seed: int) -> ReconstructionLoss:
        """Build the model of `encoder`, on the GPU if there is one. Raises CheckpointError if it has no decoder."""
        if not encoder.has_decoder:
            raise CheckpointError(
                f"{encoder.path} has no decoder, which a loss needs; give a run or one of its checkpoints"
            )
        model = encoder.model().to("cuda" if torch.cuda.is_available() else "cpu")
        return cls(model, encoder.precision, encoder.config.masking.mask_ratio, seed)

    @torch.inference_mode()
    def __call__(self, batch: Batch) -> NDArray[np.float32]:
        """Return the loss of each image of a batch, float32 (B, 1)."""
        patches = to_patches(batch.images.to(self._model.device), self._model.patch_size)
        losses = [self._loss(patches, batch.sample_ids * MASKS + mask) for mask in range(MASKS)]
        return torch.stack(losses, dim=1).mean(dim=1, keepdim=True).cpu().numpy()

    def _loss(self, patches: Tensor, numbers: NDArray[np.int64]) -> Tensor:
        """Return the loss (B,) under the masks of these numbers."""
        keys = torch.from_numpy(hash64(self._seed, numbers, STREAM_MASK).view(np.int64)).to(patches.device)
        mask = self._masker.propose(patches, keys, self._model, torch.zeros((), device=patches.device))
        with self._autocast:
            output = self._model(patches, mask, removed_patches(mask))
        return reconstruction_loss(output, mask.mask)
