"""A masker without weights for each size of the images, where that changes over a run."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from mimcl.curriculum.masking.mask import Mask
from mimcl.curriculum.masking.masker import Autoencoder, Masker


class ByGrid(Masker):
    """Masks images of L patches with the masker for L."""

    def __init__(self, maskers: Mapping[int, Masker]) -> None:
        super().__init__()
        self._maskers = dict(maskers)
        self._all = nn.ModuleList(maskers.values())  # so that they move with this one

    def propose(self, patches: Tensor, keys: Tensor, model: Autoencoder, progress: Tensor) -> Mask:
        return self._maskers[patches.shape[1]].propose(patches, keys, model, progress)
