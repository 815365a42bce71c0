"""Learned masks that get harder (CL-MAE: Madan et al., WACV 2024, arXiv 2308.16572).

A network scores the patches and those with the highest scores are removed. In a second pass, with the autoencoder
frozen, every patch stays but is dimmed by its score, so that the reconstruction loss has a gradient in the scores. The
network first lowers that loss, as the autoencoder's partner, and in the end raises it, as its adversary.

The paper's scores m say what to keep. Here s = 1 - m says what to remove, in every formula.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from mimcl.curriculum.masking.mask import Mask, agreement, keep_lowest, kept_patches
from mimcl.curriculum.masking.masker import Autoencoder, Masker, Output
from mimcl.curriculum.masking.network import drawn, first_token, transformer
from mimcl.curriculum.masking.schedule import Clock

_SIGMA = 0.12  # of the hill around 1/2 that scores are driven away from
_CLOSENESS = 0.1  # of two images' scores: its fall with their distance
_EPSILON = torch.finfo(torch.float32).eps


@dataclass(frozen=True)
class LearnedMaskingConfig:
    """The masking network, the weights of its objective's terms, and how often it is trained."""

    depth: int = 5  # blocks
    heads: int = 4
    gauss_weight: float = 1.0
    kl_weight: float = 0.1
    kl_reduction: Literal["sum", "mean"] = "sum"  # over the images of a group
    diversity_weight: float = 2.0
    group_size: int = 32  # consecutive draws
    second_every: int = 1  # steps: the second pass comes in one of so many

    def __post_init__(self) -> None:
        for name in ("depth", "heads", "group_size", "second_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"learned_masking.{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("gauss_weight", "kl_weight", "diversity_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"learned_masking.{name} is {getattr(self, name)}; it must be a number, 0 or above")


class LearnedMasker(Masker):
    """Removes the patches that its network scores highest; nothing is drawn, so that a mask follows from its image."""

    def __init__(
        self,
        config: LearnedMaskingConfig,
        model: Autoencoder,
        mask_ratio: float,
        clock: Clock,
        seed: int,
    ) -> None:
        """The network lies where `model` does; its first weights are a function of `seed`.

        ValueError when the ratio keeps or removes no patch, or the heads do not divide the encoder's width.
        """
        super().__init__()
        kept_patches(model.num_patches, mask_ratio)  # or ValueError
        self.group_size, self.second_every = config.group_size, config.second_every
        self._config, self._mask_ratio, self._clock = config, mask_ratio, clock
        width = model.cls_token.shape[-1]
        if width % config.heads:
            raise ValueError(f"learned_masking.heads is {config.heads}; it must divide the encoder's width, {width}")
        network = drawn(partial(MaskingNetwork, width, model.num_patches, config.depth, config.heads), seed)
        self.network = network.to(model.device)

    def propose(self, patches: Tensor, keys: Tensor, model: Autoencoder, progress: Tensor) -> Mask:
        scores = self.network(model.embed(patches))
        return keep_lowest(scores.detach(), self._mask_ratio)._replace(scores=scores)

    def second_loss(self, patches: Tensor, mask: Mask, model: Autoencoder, progress: Tensor) -> Tensor:
        """The objective of a draw's group, `group_size` draws in a row. ValueError for draws that are no such groups.

        c(progress) * soft reconstruction + Gaussian + KL + diversity, each over the group alone.
        """
        if len(patches) % self.group_size:
            raise ValueError(
                f"{len(patches)} draws are no whole groups of {self.group_size}; cut micro-batches at multiples of "
                "learned_masking.group_size"
            )
        tokens = (1 - mask.scores).unsqueeze(-1) * model.embed(patches)
        errors = model.reconstruct(tokens, None, patches).per_patch_loss
        scores, errors = (values.unflatten(0, (-1, self.group_size)) for values in (mask.scores, errors))
        factor = curriculum_factor(progress, self._clock)
        objective = factor * soft_reconstruction(scores, errors) + sum(self._terms_of_scores(scores).values())
        return objective.repeat_interleave(self.group_size)

    def figures(self, output: Output, mask: Mask, progress: Tensor) -> dict[str, Tensor]:
        """Of the scores mean and entropy, how alike masks are, and the objective's terms that need no second pass."""
        scores = mask.scores
        terms = self._terms_of_scores(scores.unflatten(0, (-1, self.group_size)))
        return {
            "curriculum_factor": curriculum_factor(progress, self._clock),
            "score_mean": scores.mean(),
            "score_entropy": (torch.special.entr(scores) + torch.special.entr(1 - scores)).mean() / math.log(2),  # bits
            "mask_agreement": agreement(mask),
            **{name: term.mean() for name, term in terms.items()},
        }

    def own_parameters(self) -> list[tuple[str, nn.Parameter]]:
        return list(self.named_parameters())

    def _terms_of_scores(self, scores: Tensor) -> dict[str, Tensor]:
        """What the objective has besides the reconstruction, weighted, of scores (G, n, L): each (G,)."""
        config = self._config
        kl = kl_from_ratio(scores, self._mask_ratio)
        return {
            "gaussian": config.gauss_weight * gaussian(scores),
            "kl": config.kl_weight * (kl.sum(dim=1) if config.kl_reduction == "sum" else kl.mean(dim=1)),
            "diversity": config.diversity_weight * diversity(scores),
        }


class MaskingNetwork(nn.Module):
    """Blocks over the patch tokens and a CLS token, from which a linear layer tells the scores of all patches."""

    def __init__(self, width: int, patches: int, depth: int, heads: int) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.blocks = transformer(width, depth, heads, eps=1e-5)  # as the published network's
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, patches)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (B, L, width) to scores in (0, 1), float32 (B, L): the higher, the rather removed."""
        x = torch.cat([self.cls_token.to(tokens.dtype).expand(len(tokens), -1, -1), tokens], dim=1)
        for block in self.blocks[:-1]:
            x = block(x)
        x = first_token(self.blocks[-1], x)
        # In bfloat16 many scores of an image were equal, and which of them are removed a matter of the sort.
        with torch.autocast(x.device.type, enabled=False):
            return self.head(self.norm(x.float())).sigmoid()


def curriculum_factor(progress: Tensor, clock: Clock) -> Tensor:
    """What the soft reconstruction is multiplied by: from 1, partner, to -1, adversary; a 0-d tensor as `progress`.

    Where the clock ticks at epochs e = 0, 1, ..., E - 1, those before E / 2 have 1 - 2 e / E, the others
    1 - 2 (e + 1) / E: it passes over 0. Where it ticks at steps it is a straight line.
    """
    if clock.ticks == "step":
        return 1 - 2 * progress
    epoch, whole = clock.epoch(progress), clock.whole_epochs
    return 1 - 2 / whole * (epoch + (epoch >= whole / 2))


def soft_reconstruction(scores: Tensor, errors: Tensor) -> Tensor:
    """The mean of a group's patch errors (G, n, L), weighted by their scores: (G,)."""
    return (scores * errors).sum(dim=(1, 2)) / scores.sum(dim=(1, 2)).clamp_min(_EPSILON)


def gaussian(scores: Tensor) -> Tensor:
    """High where scores (G, n, L) are near 1/2: (G,). Its peak is 0.30, sigma sqrt(2 pi), as in the published code."""
    hill = torch.exp(-(scores - 0.5).square() / (2 * _SIGMA**2))
    return _SIGMA * math.sqrt(2 * math.pi) * hill.mean(dim=(1, 2))


def kl_from_ratio(scores: Tensor, mask_ratio: float) -> Tensor:
    """KL(Bernoulli(mean score) || Bernoulli(mask_ratio)) of each image, in nats: scores (G, n, L) to (G, n)."""
    mean = scores.mean(dim=2).clamp(_EPSILON, 1 - _EPSILON)  # finite, its gradient too, where all scores are 0 or 1
    return mean * (mean / mask_ratio).log() + (1 - mean) * ((1 - mean) / (1 - mask_ratio)).log()


def diversity(scores: Tensor) -> Tensor:
    """High where a group's images have like scores (G, n, L): exp(-0.1 distance), mean over its pairs, (G,)."""
    images = scores.shape[1]
    # All differences and not a product of matrices, which near 0 is inexact; the norm's gradient at 0 is 0.
    distances = torch.linalg.vector_norm(scores.unsqueeze(2) - scores.unsqueeze(1), dim=3)
    closeness = torch.exp(-_CLOSENESS * distances).triu(1).sum(dim=(1, 2))
    return closeness / max(1, images * (images - 1) // 2)
