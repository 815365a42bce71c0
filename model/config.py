"""The `model`, `optim` and `trainer` sections of the configuration; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

EncoderName = Literal["vit_tiny", "vit_small", "vit_base", "vit_large", "vit_huge"]
# width, depth, heads of the encoder
SIZES: dict[EncoderName, tuple[int, int, int]] = {
    "vit_tiny": (192, 12, 3),
    "vit_small": (384, 12, 6),
    "vit_base": (768, 12, 12),
    "vit_large": (1024, 24, 16),
    "vit_huge": (1280, 32, 16),
}
_DECODER_HEAD_WIDTH = 32  # 16 heads at MAE's decoder width 512


@dataclass(frozen=True)
class ModelConfig:
    """The autoencoder. Raises ValueError for sizes that no model can have."""

    name: Annotated[EncoderName, "Size of the encoder."] = "vit_base"
    patch_size: Annotated[int, "Side of a patch.", "pixels"] = 16
    decoder_width: Annotated[int, "Width of the decoder, a multiple of 32.", "channels"] = 512
    decoder_depth: Annotated[int, "Depth of the decoder.", "blocks"] = 8
    norm_pix_loss: Annotated[bool, "Predict the pixels of each patch normalised by its own mean and variance."] = True
    decoder: Annotated[
        Literal["self", "cross"],
        "Decoder: self-attention over all patches (MAE), or cross-attention to the visible ones (CrossMAE).",
    ] = "self"
    predict_share: Annotated[
        float, "Share of the removed patches that is predicted in training, chosen at random, 0.25 to 1."
    ] = 1.0

    def __post_init__(self) -> None:
        if self.name not in SIZES:
            raise ValueError(f"model.name is {self.name!r}; it must be one of {', '.join(SIZES)}")
        for name in ("patch_size", "decoder_width", "decoder_depth"):
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name} is {getattr(self, name)}; it must be at least 1")
        if self.decoder not in ("self", "cross"):
            raise ValueError(f"model.decoder is {self.decoder!r}; it must be self or cross")
        if not 0.25 <= self.predict_share <= 1:
            raise ValueError(f"model.predict_share is {self.predict_share}; it must be between 0.25 and 1")
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

    base_lr: Annotated[float, "Learning rate for a batch of 256; it is multiplied by batch_size / 256."] = 1.5e-4
    weight_decay: Annotated[float, "Weight decay of AdamW, for matrices only."] = 0.05
    warmup_epochs: Annotated[float, "Warm-up, during which the learning rate rises from 0.", "epochs"] = 40.0
    betas: Annotated[tuple[float, float], "Decay rates of AdamW's moving averages."] = (0.9, 0.95)

    def __post_init__(self) -> None:
        for name in ("base_lr", "weight_decay", "warmup_epochs"):
            if getattr(self, name) < 0:
                raise ValueError(f"optim.{name} is {getattr(self, name)}; it must not be negative")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"optim.betas are {self.betas}; both must be at least 0 and below 1")


@dataclass(frozen=True)
class TrainerConfig:
    """Length, arithmetic, and how often to log, save and evaluate. Raises ValueError for invalid values."""

    epochs: Annotated[float, "Length of the run; an epoch has as many draws as there are images.", "epochs"] = 800.0
    precision: Annotated[
        Literal["auto", "bfloat16", "float32"], "Precision of the model; auto is bfloat16 where the device has it."
    ] = "auto"
    compile: Annotated[bool, "Use torch.compile."] = False
    deterministic: Annotated[bool, "Make results on a GPU reproducible bit by bit, at some cost in speed."] = False
    log_every_steps: Annotated[int, "Steps between two lines of metrics.jsonl.", "steps"] = 20
    checkpoint_every_steps: Annotated[int, "Steps between two checkpoints.", "steps"] = 1000
    keep_last: Annotated[int, "Number of latest checkpoints to keep.", "checkpoints"] = 3
    keep_every_steps: Annotated[
        int | None,
        "Keep the first checkpoint of each such interval permanently; 0: none; null: about a quarter of the run.",
        "steps",
    ] = None
    max_nonfinite: Annotated[int, "Abort after this many consecutive steps without a finite gradient.", "steps"] = 3
    online_knn_epochs: Annotated[
        float, "Interval of evaluations by nearest neighbours, also made at the end; 0: never.", "epochs"
    ] = 0.0
    online_rank_epochs: Annotated[
        float, "Interval of measuring RankMe and LiDAR, without labels, also at the end; 0: never.", "epochs"
    ] = 0.0

    def __post_init__(self) -> None:
        for name in ("log_every_steps", "checkpoint_every_steps", "keep_last", "max_nonfinite"):
            if getattr(self, name) < 1:
                raise ValueError(f"trainer.{name} is {getattr(self, name)}; it must be at least 1")
        if self.keep_every_steps is not None and self.keep_every_steps < 0:
            raise ValueError(f"trainer.keep_every_steps is {self.keep_every_steps}; it must not be negative")
        for name in ("online_knn_epochs", "online_rank_epochs"):
            if getattr(self, name) < 0:
                raise ValueError(f"trainer.{name} is {getattr(self, name)}; it must not be negative")
        if self.epochs <= 0:
            raise ValueError(f"trainer.epochs is {self.epochs}; it must be above 0")
