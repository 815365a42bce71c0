"""The classifier for fine-tuning as in MAE (He et al., CVPR 2022, and its code)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from timm.models import VisionTransformer
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn

from mimcl.model.block import Block
from mimcl.model.config import SIZES, ModelConfig
from mimcl.model.evaluate.augment import to_device
from mimcl.model.evaluate.finetune_config import FinetuneConfig
from mimcl.model.mae import MEAN, STD, encoder_weights


class DeterministicDropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016) with choices made by the caller; timm draws from the global generator."""

    kept: Tensor  # bool (B,), for the next forward pass

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Replace x (B, L, D) by zeros for images whose path is dropped, by x / (1 - rate) for the others."""
        if not self.training:
            return x
        return x * (self.kept / (1 - self.rate)).to(x.dtype)[:, None, None]


class DroppedBlock(Block):
    """A block with stochastic depth, constructed as timm's VisionTransformer constructs its own."""

    def __init__(self, dim: int, num_heads: int, drop_path: float, **ours_by_default: Any) -> None:
        super().__init__(dim, num_heads)
        self.drop_path1, self.drop_path2 = (
            DeterministicDropPath(drop_path) if drop_path else nn.Identity() for _ in range(2)
        )

    def forward(self, x: Tensor, ids: Tensor | None = None) -> Tensor:
        """Map tokens (B, L, width) to tokens."""
        x = x + self.drop_path1(self.attn(self.norm1(x)))
        return x + self.drop_path2(self.mlp(self.norm2(x)))


class Classifier(nn.Module):
    """timm's VisionTransformer with the encoder of a MAE: mean of the patch tokens, LayerNorm, linear head."""

    def __init__(self, config: ModelConfig, image_size: int, classes: int, drop_path: float) -> None:
        super().__init__()
        width, depth, heads = SIZES[config.name]
        # Layers draw default weights from the global generator when they are created; restore its state.
        with torch.random.fork_rng(devices=[]):
            self.vit = VisionTransformer(
                img_size=image_size,
                patch_size=config.patch_size,
                embed_dim=width,
                depth=depth,
                num_heads=heads,
                num_classes=classes,
                global_pool="avg",
                drop_path_rate=drop_path,
                norm_layer=partial(nn.LayerNorm, eps=1e-6),
                block_fn=DroppedBlock,
                weight_init="skip",
            )
        self.paths = [module for module in self.vit.modules() if isinstance(module, DeterministicDropPath)]

    def initialise(self, tensors: Mapping[str, Tensor], generator: torch.Generator) -> None:
        """Load the encoder's weights, except its final norm, which mean pooling does not use; draw a head near zero."""
        encoder = {name: value for name, value in encoder_weights(tensors).items() if not name.startswith("norm.")}
        new = {name: value for name, value in self.vit.named_parameters() if name.startswith(("fc_norm.", "head."))}
        self.vit.load_state_dict(encoder | new)
        nn.init.ones_(new["fc_norm.weight"])
        nn.init.zeros_(new["fc_norm.bias"])
        nn.init.trunc_normal_(new["head.weight"], std=2e-5, generator=generator)
        nn.init.zeros_(new["head.bias"])

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (B, 3, S, S) to logits (B, C)."""
        return self.vit(images)

    def keep_paths(self, numbers: NDArray[np.float64]) -> None:
        """Choose the paths of the next forward pass: dropped where numbers in [0, 1) (B, paths) are below the rate."""
        rates = np.array([path.rate for path in self.paths])
        kept = to_device((numbers >= rates).T.copy(), next(self.parameters()).device)
        for path, images_kept in zip(self.paths, kept, strict=True):
            path.kept = images_kept

    def parameter_groups(self, config: FinetuneConfig) -> list[dict]:
        """Parameter groups for AdamW with "lr_scale" layer_decay^(depth + 1 - layer); layer 0 is the embedding."""
        no_decay = self.vit.no_weight_decay()
        return param_groups_layer_decay(self.vit, config.weight_decay, no_decay, layer_decay=config.layer_decay)


def normalise(images: Tensor) -> Tensor:
    """Normalise uint8 images (B, 3, S, S) with ImageNet's mean and standard deviation, to float32."""
    mean, std = (to_device(255 * np.array(v, np.float32), images.device).view(3, 1, 1) for v in (MEAN, STD))
    return images.float().sub_(mean).div_(std)


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """The cross-entropy (B,) between logits and target probabilities, both (B, C), in float32."""
    return -(targets * logits.float().log_softmax(dim=1)).sum(dim=1)
