"""Random masking (He et al., CVPR 2022): every patch is equally likely to be removed."""

from __future__ import annotations

from torch import Tensor

from mimcl.curriculum.masking.mask import Mask, keep_lowest, kept_patches
from mimcl.curriculum.masking.masker import Autoencoder, Masker
from mimcl.curriculum.masking.uniforms import uniforms


class RandomMasker(Masker):
    """Removes a uniformly random subset of the patches."""

    def __init__(self, patches: int, mask_ratio: float) -> None:
        super().__init__()
        kept_patches(patches, mask_ratio)  # may raise ValueError
        self._patches, self._mask_ratio = patches, mask_ratio

    def propose(self, patches: Tensor, keys: Tensor, model: Autoencoder, progress: Tensor) -> Mask:
        return keep_lowest(uniforms(keys, self._patches), self._mask_ratio)
