"""Weights of masked autoencoders by anybody, as ours: MAE's published files, timm's, Hugging Face's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from mimcl.model.mae import ModelConfig


@dataclass(frozen=True)
class Weights:
    """Tensors named as in MaskedAutoencoderViT, without decoder where the file has none, and the model they fit."""

    config: ModelConfig
    image_size: int  # pixels
    tensors: dict[str, Tensor]
    has_decoder: bool


def read_weights(path: Path) -> Weights:
    """Reads a file of weights, or a Hugging Face folder. Raises CheckpointError for what is not a plain ViT."""
    raise NotImplementedError
