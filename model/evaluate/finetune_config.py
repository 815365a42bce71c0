"""MAE's recipe for fine-tuning (He et al., CVPR 2022, and its code); imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated


@dataclass(frozen=True)
class FinetuneConfig:
    """Everything that fine-tuning depends on besides encoder and data; the defaults are MAE's for ViT-B."""

    epochs: Annotated[float, "Length of the training.", "epochs"] = 100.0
    batch_size: Annotated[int, "Images per step, over all processes.", "images"] = 1024
    base_lr: Annotated[float, "Learning rate for a batch of 256; it is multiplied by batch_size / 256."] = 5e-4
    min_lr: Annotated[float, "Learning rate at the end."] = 1e-6
    warmup_epochs: Annotated[
        float, "Warm-up, during which the learning rate rises from 0, at most a fifth of the length.", "epochs"
    ] = 5.0
    weight_decay: Annotated[float, "Weight decay of AdamW, for matrices only."] = 0.05
    betas: Annotated[tuple[float, float], "Decay rates of AdamW's moving averages."] = (0.9, 0.999)
    layer_decay: Annotated[float, "Learning rate of a layer relative to the next."] = 0.65
    drop_path: Annotated[float, "Stochastic depth rate of the last block."] = 0.1
    rand_augment: Annotated[float, "Magnitude of RandAugment, at most 10; 0: none."] = 9.0
    rand_augment_std: Annotated[float, "Standard deviation of that magnitude."] = 0.5
    erasing: Annotated[float, "Probability that a box of an image is erased."] = 0.25
    mixup: Annotated[float, "Parameter of mixup's beta distribution; 0: no mixup."] = 0.8
    cutmix: Annotated[float, "Parameter of CutMix's beta distribution; 0: no CutMix."] = 1.0
    mixing_switch: Annotated[float, "Probability of CutMix, if both are enabled."] = 0.5
    mixing_group: Annotated[
        int, "Consecutive draws that are mixed with one weight, as a GPU's batch in MAE.", "draws"
    ] = 32
    label_smoothing: Annotated[float, "Share of the label that is spread over all classes."] = 0.1
    smallest_crop: Annotated[float, "Smallest area of a crop, as a share of the image's."] = 0.08
    judge_every_epochs: Annotated[float, "How often to evaluate on the val images during training.", "epochs"] = 10.0
    seed: Annotated[int, "Random seed."] = 0

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
