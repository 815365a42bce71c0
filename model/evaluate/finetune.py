"""The classifier for fine-tuning, and MAE's recipe for training it (He et al., CVPR 2022, and its code)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from timm.layers import DropPath
from timm.models import VisionTransformer
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn

from mimcl.model.config import SIZES, ModelConfig
from mimcl.model.evaluate.augment import to_device
from mimcl.model.mae import MEAN, STD, encoder_weights


@dataclass(frozen=True)
class FinetuneConfig:
    """Everything that fine-tuning depends on besides encoder and data; the defaults are MAE's for ViT-B."""

    epochs: float = 100.0
    batch_size: int = 1024
    base_lr: float = 5e-4  # times batch_size / 256
    min_lr: float = 1e-6
    warmup_epochs: float = 5.0  # at most a fifth of the epochs
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    layer_decay: float = 0.65
    drop_path: float = 0.1
    rand_augment: float = 9.0  # magnitude, at most 10; 0: none
    rand_augment_std: float = 0.5
    erasing: float = 0.25  # probability
    mixup: float = 0.8
    cutmix: float = 1.0
    mixing_switch: float = 0.5  # probability of cutmix, if mixup and cutmix are both enabled
    mixing_group: int = 32  # consecutive draws that are mixed with one weight, as a GPU's batch in MAE
    label_smoothing: float = 0.1
    smallest_crop: float = 0.08  # share of the area
    judge_every_epochs: float = 10.0  # evaluate on the val images during training
    seed: int = 0

    def __post_init__(self) -> None:
        for name, (low, high) in _RANGES.items():
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be from {low} to {high}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas are {self.betas}; both must be at least 0 and below 1")

    @classmethod
    def overrides_for(cls, size: str) -> dict[str, float]:
        """Values that differ from the defaults for an encoder of that size in MAE; tiny and small use ViT-B's."""
        larger = {"epochs": 50.0, "base_lr": 1e-3, "layer_decay": 0.75}
        return {"vit_large": larger | {"drop_path": 0.2}, "vit_huge": larger | {"drop_path": 0.3}}.get(size, {})


_UNBOUNDED = 1e9
_RANGES = {
    **dict.fromkeys(("epochs", "judge_every_epochs"), (1e-6, _UNBOUNDED)),
    "batch_size": (1, _UNBOUNDED),
    "mixing_group": (1, _UNBOUNDED),
    "smallest_crop": (1e-6, 1),
    "rand_augment": (0, 10),
    "layer_decay": (1e-6, 1),
    "drop_path": (0, 0.99),
    **dict.fromkeys(("base_lr", "min_lr", "warmup_epochs", "weight_decay", "mixup", "cutmix"), (0, _UNBOUNDED)),
    "rand_augment_std": (0, _UNBOUNDED),
    **dict.fromkeys(("erasing", "mixing_switch", "label_smoothing"), (0, 1)),
}


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
                weight_init="skip",
            )
        self.paths: list[DeterministicDropPath] = []
        for block in self.vit.blocks:
            for name in ("drop_path1", "drop_path2"):
                if isinstance(module := getattr(block, name), DropPath):
                    self.paths.append(DeterministicDropPath(float(module.drop_prob or 0.0)))
                    setattr(block, name, self.paths[-1])

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
