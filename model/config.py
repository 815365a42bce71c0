"""The `model`, `optim` and `trainer` sections of the configuration; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# width, depth, heads of the encoder
SIZES = {
    "vit_tiny": (192, 12, 3),
    "vit_small": (384, 12, 6),
    "vit_base": (768, 12, 12),
    "vit_large": (1024, 24, 16),
    "vit_huge": (1280, 32, 16),
}
_DECODER_HEAD_WIDTH = 32  # 16 heads at MAE's decoder width 512


@dataclass(frozen=True)
class ModelConfig:
    """Encoder size by name, patch size in pixels, decoder width and number of blocks, kind of target."""

    name: str = "vit_base"
    patch_size: int = 16
    decoder_width: int = 512
    decoder_depth: int = 8
    norm_pix_loss: bool = True

    def __post_init__(self) -> None:
        if self.name not in SIZES:
            raise ValueError(f"model.name is {self.name!r}; it must be one of {', '.join(SIZES)}")
        for name in ("patch_size", "decoder_width", "decoder_depth"):
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name} is {getattr(self, name)}; it must be at least 1")
        if self.decoder_width % _DECODER_HEAD_WIDTH:
            raise ValueError(
                f"model.decoder_width is {self.decoder_width}; it must be a multiple of 32, the width of a head"
            )

    @property
    def decoder_heads(self) -> int:
        return self.decoder_width // _DECODER_HEAD_WIDTH


@dataclass(frozen=True)
class OptimConfig:
    """The learning rate is base_lr * batch_size / 256, warmed up linearly, then a half cosine down to 0.

    A step has the rate at its beginning, so a warm-up of less than a step would only waste the first one: it is left
    out, as is that of a run of a single step.
    """

    base_lr: float = 1.5e-4
    weight_decay: float = 0.05
    warmup_epochs: float = 40.0
    betas: tuple[float, float] = (0.9, 0.95)

    def __post_init__(self) -> None:
        for name in ("base_lr", "weight_decay", "warmup_epochs"):
            if getattr(self, name) < 0:
                raise ValueError(f"optim.{name} is {getattr(self, name)}; it must not be negative")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"optim.betas are {self.betas}; both must be at least 0 and below 1")


@dataclass(frozen=True)
class TrainerConfig:
    """Length in epochs, arithmetic, and how often to log and save, in steps.

    `keep_every_steps` None becomes about a quarter of the run: a report shows what changed on the way.
    """

    epochs: float = 800.0
    precision: Literal["auto", "bfloat16", "float32"] = "auto"
    compile: bool = False
    deterministic: bool = False  # the same bits from the same steps on a GPU too, at some cost
    log_every_steps: int = 20
    checkpoint_every_steps: int = 1000
    keep_last: int = 3  # checkpoints
    keep_every_steps: int | None = None  # of each such stretch the first checkpoint is kept for good; 0: of none
    max_nonfinite: int = 3  # steps in a row without a finite gradient before the run stops
    online_knn_epochs: float = 0.0  # nearest neighbours are looked up every so many epochs, and at the end; 0: never

    def __post_init__(self) -> None:
        for name in ("log_every_steps", "checkpoint_every_steps", "keep_last", "max_nonfinite"):
            if getattr(self, name) < 1:
                raise ValueError(f"trainer.{name} is {getattr(self, name)}; it must be at least 1")
        if self.keep_every_steps is not None and self.keep_every_steps < 0:
            raise ValueError(f"trainer.keep_every_steps is {self.keep_every_steps}; it must not be negative")
        if self.online_knn_epochs < 0:
            raise ValueError(f"trainer.online_knn_epochs is {self.online_knn_epochs}; it must not be negative")
        if self.epochs <= 0:
            raise ValueError(f"trainer.epochs is {self.epochs}; it must be above 0")
