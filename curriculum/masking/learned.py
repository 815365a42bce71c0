"""Learned masks that get harder (CL-MAE: Madan et al., WACV 2024, arXiv 2308.16572).

A network scores the patches, and those with the highest scores are removed. In a second pass, with the autoencoder
frozen, all patches are kept but scaled down by their scores, so that the reconstruction loss has a gradient in the
scores. The network first lowers that loss, as the autoencoder's partner, and later raises it, as its adversary.

In the paper a high score m means keep. Here s = 1 - m, high = remove, in every formula.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor, nn

from mimcl.curriculum.masking.mask import Mask, agreement, keep_lowest, kept_patches
from mimcl.curriculum.masking.masker import Autoencoder, Masker, Output
from mimcl.curriculum.masking.masking_config import LearnedMaskingConfig
from mimcl.curriculum.masking.network import initialised, transformer
from mimcl.curriculum.masking.schedule import MaskingSchedule

_SIGMA = 0.12  # of the Gaussian around 1/2 that scores are driven away from
_DECAY = 0.1  # of the diversity term with the distance between two images' scores
_EPSILON = torch.finfo(torch.float32).eps


class LearnedMasker(Masker):
    """Removes the patches that its network scores highest; a mask depends on the image only, not on its key."""

    def __init__(
        self,
        config: LearnedMaskingConfig,
        model: Autoencoder,
        mask_ratio: float,
        schedule: MaskingSchedule,
        seed: int,
    ) -> None:
        """The network is on the device of `model`; its initial weights are drawn from `seed`.

        Raises ValueError if the ratio keeps or removes no patch, or the heads do not divide the encoder's width.
        """
        super().__init__()
        kept_patches(model.num_patches, mask_ratio)  # may raise ValueError
        self.group_size, self.second_every = config.group_size, config.second_every
        self._config, self._mask_ratio, self._schedule = config, mask_ratio, schedule
        width = model.cls_token.shape[-1]
        if width % config.heads:
            raise ValueError(f"learned_masking.heads is {config.heads}; it must divide the encoder's width ({width})")
        kind = type(model.blocks[0])
        build = partial(MaskingNetwork, kind, width, model.num_patches, config.depth, config.heads, model.grids)
        network = initialised(build, seed)
        self.network = network.to(model.device)

    def propose(self, patches: Tensor, keys: Tensor, model: Autoencoder, progress: Tensor) -> Mask:
        scores = self.network(model.embed(patches))
        return keep_lowest(scores.detach(), self._mask_ratio)._replace(scores=scores)

    def second_loss(self, patches: Tensor, mask: Mask, model: Autoencoder, progress: Tensor) -> Tensor:
        """Return the objective of each draw's group of `group_size` consecutive draws.

        c(progress) * soft reconstruction + Gaussian + KL + diversity, each over one group. Raises ValueError unless the
        draws are whole groups.
        """
        if len(patches) % self.group_size:
            raise ValueError(
                f"{len(patches)} draws are not a multiple of learned_masking.group_size ({self.group_size}); cut "
                "micro-batches at its multiples"
            )
        assert mask.scores is not None
        tokens = (1 - mask.scores).unsqueeze(-1) * model.embed(patches)
        errors = model.reconstruct(tokens, None, patches).per_patch_loss
        scores, errors = (values.unflatten(0, (-1, self.group_size)) for values in (mask.scores, errors))
        factor = curriculum_factor(progress, self._schedule)
        objective = factor * soft_reconstruction(scores, errors) + sum(self._terms_of_scores(scores).values())
        return objective.repeat_interleave(self.group_size)

    def figures(self, output: Output, mask: Mask, progress: Tensor) -> dict[str, Tensor]:
        """Return mean and entropy of the scores, agreement of masks, and the objective's terms of the scores alone."""
        scores = mask.scores
        assert scores is not None
        terms = self._terms_of_scores(scores.unflatten(0, (-1, self.group_size)))
        return {
            "curriculum_factor": curriculum_factor(progress, self._schedule),
            "score_mean": scores.mean(),
            "score_entropy": (torch.special.entr(scores) + torch.special.entr(1 - scores)).mean() / math.log(2),  # bits
            "mask_agreement": agreement(mask),
            **{name: term.mean() for name, term in terms.items()},
        }

    def own_parameters(self) -> list[tuple[str, nn.Parameter]]:
        return list(self.named_parameters())

    def _terms_of_scores(self, scores: Tensor) -> dict[str, Tensor]:
        """Return the weighted terms of the objective that depend on scores (G, n, L) alone: each (G,)."""
        config = self._config
        kl = kl_from_ratio(scores, self._mask_ratio)
        return {
            "gaussian": config.gauss_weight * gaussian(scores),
            "kl": config.kl_weight * (kl.sum(dim=1) if config.kl_reduction == "sum" else kl.mean(dim=1)),
            "diversity": config.diversity_weight * diversity(scores),
        }


class MaskingNetwork(nn.Module):
    """Blocks over the patch tokens and a CLS token, from which a linear layer computes the scores of all patches.

    Smaller images have fewer patches: what the layer computes for the full grid is averaged over the area of each.
    """

    def __init__(
        self,
        block: type[nn.Module],
        width: int,
        patches: int,
        depth: int,
        heads: int,
        grids: Iterable[int] = (),
    ) -> None:
        """`grids` are all numbers of patches that images may have, `patches` the largest."""
        super().__init__()
        self._patches = patches
        for other in {*grids} - {patches}:
            averages = area_averages(math.isqrt(patches), math.isqrt(other))
            self.register_buffer(f"_averages_{other}", averages, persistent=False)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.blocks = transformer(block, width, depth, heads, eps=1e-5)  # as in the published network
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, patches)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (B, L, width) to scores in (0, 1), float32 (B, L); higher = more likely masked."""
        x = torch.cat([self.cls_token.to(tokens.dtype).expand(len(tokens), -1, -1), tokens], dim=1)
        *blocks, last = self.blocks
        for block in blocks:
            x = block(x)
        x = last(x, torch.zeros(len(x), 1, dtype=torch.long, device=x.device)).squeeze(1)
        # In bfloat16 many scores of an image would be equal, and the sort would decide which are removed.
        with torch.autocast(x.device.type, enabled=False):
            logits = self.head(self.norm(x.float()))
            if (count := tokens.shape[1]) != self._patches:
                logits = logits @ getattr(self, f"_averages_{count}")
            return logits.sigmoid()


def area_averages(side: int, smaller: int) -> Tensor:
    """Return the matrix (side^2, smaller^2) that averages a grid over the area of each cell of a smaller grid."""
    edges = torch.arange(side + 1, dtype=torch.float64) / side
    starts = torch.arange(smaller, dtype=torch.float64) / smaller
    overlap = torch.minimum(edges[1:, None], starts + 1 / smaller) - torch.maximum(edges[:-1, None], starts)
    one_axis = overlap.clamp(min=0) * smaller
    return torch.kron(one_axis, one_axis).float()


def curriculum_factor(progress: Tensor, schedule: MaskingSchedule) -> Tensor:
    """Return the weight of the soft reconstruction, 0-d: from 1 (partner) to -1 (adversary).

    With clock "epoch", epochs e = 0, 1, ..., E - 1 have 1 - 2 e / E if e < E / 2, else 1 - 2 (e + 1) / E: never 0. With
    clock "step" it is linear in the progress.
    """
    if schedule.clock == "step":
        return 1 - 2 * progress
    epoch, epochs = schedule.epoch(progress), schedule.num_epochs
    return 1 - 2 / epochs * (epoch + (epoch >= epochs / 2))


def soft_reconstruction(scores: Tensor, errors: Tensor) -> Tensor:
    """Return the mean of a group's patch errors (G, n, L), weighted by their scores: (G,)."""
    return (scores * errors).sum(dim=(1, 2)) / scores.sum(dim=(1, 2)).clamp_min(_EPSILON)


def gaussian(scores: Tensor) -> Tensor:
    """Return a term (G,) that is high if scores (G, n, L) are near 1/2; at most 0.30, as in the published code."""
    hill = torch.exp(-(scores - 0.5).square() / (2 * _SIGMA**2))
    return _SIGMA * math.sqrt(2 * math.pi) * hill.mean(dim=(1, 2))


def kl_from_ratio(scores: Tensor, mask_ratio: float) -> Tensor:
    """Return KL(Bernoulli(mean score) || Bernoulli(mask_ratio)) of each image, in nats: scores (G, n, L) to (G, n)."""
    mean = scores.mean(dim=2).clamp(_EPSILON, 1 - _EPSILON)  # loss and gradient stay finite if all scores are 0 or 1
    return mean * (mean / mask_ratio).log() + (1 - mean) * ((1 - mean) / (1 - mask_ratio)).log()


def diversity(scores: Tensor) -> Tensor:
    """Return exp(-0.1 distance) of the images' scores (G, n, L), mean over a group's pairs, (G,): high if similar."""
    images = scores.shape[1]
    # All differences, not a matrix product, which is inexact near 0; the norm's gradient at 0 is 0.
    distances = torch.linalg.vector_norm(scores.unsqueeze(2) - scores.unsqueeze(1), dim=3)
    closeness = torch.exp(-_DECAY * distances).triu(1).sum(dim=(1, 2))
    return closeness / max(1, images * (images - 1) // 2)
