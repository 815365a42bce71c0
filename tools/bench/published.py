"""MAE, HPM and CL-MAE in the structure of their published codes, re-implemented in our own words as peers to measure.

The published codes themselves are not here. What is theirs is the order of the work and what is computed at all: every
patch is embedded by a convolution before patches are removed; HPM's teacher reconstructs too, its masks are drawn image
by image on the host and its second decoder has an output per pixel; CL-MAE embeds and scores the patches twice and
compares pairs of images one by one. Transformer blocks are timm's, the optimizer is torch's AdamW as it comes.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from timm.layers import PatchEmbed
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from mimcl.model.config import SIZES, ModelConfig
from mimcl.model.positions import sin_cos_positions

_HARD_SHARE = 0.25  # of the removed patches, in the middle of HPM's schedule
_MOMENTUM = 0.999


class Shape(NamedTuple):
    model: ModelConfig
    image_size: int
    ratio: float


class PlainMAE(nn.Module):
    """He et al. (2022), written from the paper with timm's blocks."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        config, image_size, ratio = shape
        width, depth, heads = SIZES[config.name]
        inner, side = config.decoder_width, image_size // config.patch_size
        self.patch_size, self.kept = config.patch_size, int(side * side * (1 - ratio))
        norm: Any = partial(nn.LayerNorm, eps=1e-6)  # timm annotates a class and takes any callable
        block = partial(Block, mlp_ratio=4.0, qkv_bias=True, norm_layer=norm)
        self.patch_embed = PatchEmbed(image_size, config.patch_size, 3, width)
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.pos_embed = nn.Parameter(sin_cos_positions(width, side), requires_grad=False)
        self.blocks = nn.ModuleList(block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.decoder_embed = nn.Linear(width, inner)
        self.mask_token = nn.Parameter(0.02 * torch.randn(1, 1, inner))
        self.decoder_pos_embed = nn.Parameter(sin_cos_positions(inner, side), requires_grad=False)
        self.decoder_blocks = nn.ModuleList(block(inner, inner // 32) for _ in range(config.decoder_depth))
        self.decoder_norm = nn.LayerNorm(inner, eps=1e-6)
        self.decoder_pred = nn.Linear(inner, 3 * config.patch_size**2)

    def forward(self, images: Tensor) -> Tensor:
        x = self.embed(images)
        order = torch.rand(x.shape[:2], device=x.device).argsort(dim=1)
        return self.reconstruction_loss(images, x, order)

    def embed(self, images: Tensor) -> Tensor:
        return self.patch_embed(images) + self.pos_embed[:, 1:]

    def reconstruction_loss(self, images: Tensor, x: Tensor, order: Tensor) -> Tensor:
        """Return the loss of all tokens x of which the first of an order (B, L) are kept."""
        b, count, width = x.shape
        restore = order.argsort(dim=1)
        kept = order[:, : self.kept]
        mask = torch.ones(b, count, device=x.device)
        mask[:, : self.kept] = 0
        mask = mask.gather(1, restore)
        x = self.decoder_embed(self.encode(x.gather(1, kept[:, :, None].repeat(1, 1, width))))
        full = torch.cat([x[:, 1:], self.mask_token.repeat(b, count - self.kept, 1)], dim=1)
        full = full.gather(1, restore[:, :, None].repeat(1, 1, x.shape[2]))
        x = torch.cat([x[:, :1], full], dim=1) + self.decoder_pos_embed
        loss = ((self.decode(x) - self.target(images)) ** 2).mean(-1)
        return (loss * mask).sum() / mask.sum()

    def encode(self, x: Tensor) -> Tensor:
        x = torch.cat([(self.cls_token + self.pos_embed[:, :1]).expand(len(x), -1, -1), x], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def decode(self, x: Tensor) -> Tensor:
        for block in self.decoder_blocks:
            x = block(x)
        return self.decoder_pred(self.decoder_norm(x))[:, 1:]

    def target(self, images: Tensor) -> Tensor:
        b, p = len(images), self.patch_size
        side = images.shape[2] // p
        target = images.reshape(b, 3, side, p, side, p).permute(0, 2, 4, 3, 5, 1).reshape(b, side * side, -1)
        return (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6) ** 0.5


class PlainHPM(PlainMAE):
    """Wang et al. (2023): a second decoder predicts the losses of patches."""

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        self.loss_blocks = copy.deepcopy(self.decoder_blocks)
        self.loss_norm, self.loss_pred = copy.deepcopy(self.decoder_norm), copy.deepcopy(self.decoder_pred)

    def both(self, images: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return prediction and predicted losses with patches removed by a bool mask (B, L): kept ones come first."""
        x = self.embed(images)
        b, _, width = x.shape
        x = self.decoder_embed(self.encode(x[~mask].reshape(b, -1, width)))
        positions = self.decoder_pos_embed[:, 1:].expand(b, -1, -1)
        kept, removed = (positions[places].reshape(b, -1, x.shape[2]) for places in (~mask, mask))
        x = torch.cat([x[:, :1], x[:, 1:] + kept, self.mask_token + removed], dim=1)
        predicted = self.decode(x)
        for block in self.loss_blocks:
            x = block(x)
        return predicted, self.loss_pred(self.loss_norm(x))[:, 1:].mean(-1)

    def forward(self, images: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Return the reconstruction loss and the ranking loss."""
        predicted, ranks = self.both(images, mask)
        b, target = len(images), self.target(images)
        removed = target.shape[1] - self.kept
        target = target[mask].reshape(b, removed, -1)
        losses = ((predicted[:, -removed:] - target) ** 2).mean(-1)
        ranks, found = ranks[:, -removed:], losses.detach()
        harder = (found[:, :, None] > found[:, None, :]).float()
        easier = (found[:, :, None] < found[:, None, :]).float()
        above = (ranks[:, :, None] - ranks[:, None, :]).sigmoid()
        pairs = -harder * torch.log(above + 1e-6) - easier * torch.log(1 - above + 1e-6)
        return losses.mean(), pairs.sum() / (harder + easier).sum()


def masks_of(scores: Tensor, kept: int) -> Tensor:
    """Return bool masks (B, L), True = removed: the hardest by scores (B, L), and others, drawn image by image."""
    count = scores.shape[1]
    hard = int((count - kept) * _HARD_SHARE)
    masks = []
    for order in scores.argsort(dim=1, descending=True):
        places = order.cpu().numpy()
        rest = np.delete(np.arange(count), places[:hard])
        np.random.default_rng(int(places[0])).shuffle(rest)
        mask = np.zeros(count, dtype=bool)
        mask[places[:hard]] = mask[rest[: count - kept - hard]] = True
        masks.append(torch.from_numpy(mask).to(scores.device))
    return torch.stack(masks)


class PlainCLMAE(PlainMAE):
    """Madan et al. (2024): a network of five blocks scores the patches from a token of its own."""

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        width = self.pos_embed.shape[2]
        blocks: list[nn.Module] = [Block(width, 4, mlp_ratio=4.0, qkv_bias=True) for _ in range(5)]
        self.scorer = nn.Sequential(*blocks)
        self.scorer_token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.scorer_head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, self.pos_embed.shape[1] - 1))

    def of_scorer(self, names: bool) -> Iterable[nn.Parameter]:
        """Return the parameters of the network that scores, or those of the autoencoder."""
        trained = (pair for pair in self.named_parameters() if "pos_embed" not in pair[0])
        return [parameter for name, parameter in trained if name.startswith("scorer") == names]

    def forward(self, images: Tensor, soft: bool) -> Tensor:  # type: ignore[override]
        """Return the reconstruction loss, or with `soft` the objective of the network that scores."""
        x = self.embed(images)
        tokens = torch.cat([self.scorer_token.expand(len(x), -1, -1), x], dim=1)
        keep = self.scorer_head(self.scorer(tokens)[:, 0]).sigmoid()
        if not soft:
            return self.reconstruction_loss(images, x, keep.argsort(dim=1, descending=True))
        x = self.decoder_embed(self.encode(x * keep[:, :, None])) + self.decoder_pos_embed
        errors = ((self.decode(x) - self.target(images)) ** 2).mean(-1)
        keep = keep.float()
        loss = ((1 - keep) * errors).sum() / (1 - keep).sum()
        hill = 0.12 * math.sqrt(2 * math.pi) * torch.exp(-((keep - 0.5) ** 2) / (2 * 0.12**2))
        mean = keep.mean(dim=1)
        kl = mean * (mean / 0.25).log() + (1 - mean) * ((1 - mean) / 0.75).log()
        diversity = torch.zeros((), device=x.device)
        for i in range(len(keep)):
            for j in range(i + 1, len(keep)):
                diversity = diversity + torch.exp(-0.1 * (keep[i] - keep[j]).norm())
        return loss + hill.mean() + 0.1 * kl.sum() + 2 * diversity * 2 / (len(keep) * (len(keep) - 1))


class Loop:
    """The straightforward loop around a model: normalise, autocast, wait for the loss, AdamW."""

    def __init__(self, model: nn.Module, images: Tensor, bfloat16: bool, compiled: bool) -> None:
        self.model, self._images, self._bfloat16 = model, images, bfloat16
        self.forward: Callable[..., Any] = torch.compile(model) if compiled else model
        self._optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, betas=(0.9, 0.95), weight_decay=0.05)
        self._mean = torch.tensor([0.485, 0.456, 0.406], device=images.device)[:, None, None]
        self._deviation = torch.tensor([0.229, 0.224, 0.225], device=images.device)[:, None, None]

    def images(self) -> Tensor:
        return (self._images / 255 - self._mean) / self._deviation

    def arithmetic(self) -> torch.autocast:
        return torch.autocast(self._images.device.type, torch.bfloat16, enabled=self._bfloat16)

    def update(self, loss: Tensor, *shown: Tensor) -> None:
        if not all(math.isfinite(value.item()) for value in (loss, *shown)):
            raise SystemExit("a straightforward model's loss is not finite")
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()


def mae_step(shape: Shape, *how: Any) -> Callable[[], None]:
    """Return a function that makes a step of a new PlainMAE; `how` as in `Loop`."""
    loop = Loop(PlainMAE(shape).to(how[0].device), *how)

    def step() -> None:
        with loop.arithmetic():
            loss = loop.forward(loop.images())
        loop.update(loss)

    return step


def hpm_step(shape: Shape, *how: Any) -> Callable[[], None]:
    """Return a function that makes a step of a new PlainHPM with its teacher; `how` as in `Loop`."""
    model = PlainHPM(shape).to(how[0].device)
    teacher, loop = copy.deepcopy(model), Loop(model, *how)

    def step() -> None:
        images = loop.images()
        with loop.arithmetic():
            with torch.no_grad():
                nothing = torch.zeros(len(images), model.pos_embed.shape[1] - 1, dtype=torch.bool, device=images.device)
                scores = teacher.both(images, nothing)[1]
            loss, ranking = loop.forward(images, masks_of(scores, model.kept))
        loop.update(loss + ranking, ranking)
        with torch.no_grad():
            for average, value in zip(teacher.state_dict().values(), model.state_dict().values(), strict=True):
                average.copy_(_MOMENTUM * average + (1 - _MOMENTUM) * value)

    return step


def cl_mae_step(shape: Shape, *how: Any) -> Callable[[], None]:
    """Return a function that makes a step, both passes, of a new PlainCLMAE; `how` as in `Loop`."""
    model = PlainCLMAE(shape).to(how[0].device)
    loop = Loop(model, *how)

    def step() -> None:
        images = loop.images()
        for soft in (False, True):
            for of_scorer in (False, True):
                for parameter in model.of_scorer(of_scorer):
                    parameter.requires_grad_(of_scorer == soft)
            with loop.arithmetic():
                loss = loop.forward(images, soft)
            loop.update(loss)

    return step
