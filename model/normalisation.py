"""Pixel normalisation of third-party weights, and its conversion to ours (ImageNet's mean and deviation)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mimcl.model.mae import MEAN, STD

_PROJECTION = ("patch_embed.proj.weight", "patch_embed.proj.bias")
_SAME = 1e-4  # ImageNet's constants are published with three to six digits


@dataclass(frozen=True)
class Normalisation:
    """(pixel - mean) / std for red, green and blue in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __str__(self) -> str:
        mean, std = (", ".join(f"{value:.4g}" for value in values) for values in (self.mean, self.std))
        return f"mean ({mean}) and deviation ({std})"

    @property
    def is_ours(self) -> bool:
        pairs = zip((*self.mean, *self.std), (*MEAN, *STD), strict=True)
        return all(math.isclose(theirs, ours, abs_tol=_SAME) for theirs, ours in pairs)


def normalisation_of(found: Mapping[str, Any]) -> Normalisation | None:
    """Return the normalisation in preprocessor_config.json (Hugging Face) or config.json (timm); None without one.

    Raises ValueError for invalid constants.
    """
    if found.get("do_normalize") is False and "image_mean" in found:
        found = {**found, "image_mean": 0.0, "image_std": 1.0}
    if "image_mean" in found:
        # Pixels are multiplied by the factor first: (255 f p - m) / s = (p - m / 255 f) / (s / 255 f).
        factor = found.get("rescale_factor", 1 / 255)
        scale = 255 * _numbers("rescale_factor", factor)[0] if found.get("do_rescale", True) else 255.0
        mean, std = _numbers("image_mean", found["image_mean"]), _numbers("image_std", found.get("image_std"))
    else:
        described = found.get("pretrained_cfg", found)
        if not isinstance(described, dict) or not {"mean", "std"} <= described.keys():
            return None
        scale, mean, std = 1.0, _numbers("mean", described["mean"]), _numbers("std", described["std"])
    if scale <= 0 or min(std) <= 0:
        raise ValueError("its configuration scales pixels by a factor that is not positive")
    if math.isclose(scale, 1, rel_tol=1e-4):  # 1 / 255 with few digits
        scale = 1.0
    return Normalisation(tuple(value / scale for value in mean), tuple(value / scale for value in std))


def fold(tensors: Mapping[str, Tensor], theirs: Normalisation) -> dict[str, Tensor]:
    """Return float32 tensors whose patch projection gives for our pixels the result it gave for theirs.

    With x = (p - m) / s ours and (p - m') / s' theirs, the latter is (x s + m - m') / s' for each colour: the
    projection's weights are multiplied by s / s', and its bias grows by (m - m') / s' times their sum. This is exact,
    because patches are not padded.
    """
    weight, bias = (tensors[name].double() for name in _PROJECTION)  # (width, 3, p, p), (width,)
    m, s, mean, std = (torch.tensor(v, dtype=torch.float64) for v in (MEAN, STD, theirs.mean, theirs.std))
    bias = bias + weight.sum(dim=(2, 3)) @ ((m - mean) / std)
    weight = weight * (s / std).view(1, 3, 1, 1)
    return {**tensors, _PROJECTION[0]: weight.float(), _PROJECTION[1]: bias.float()}


def _numbers(name: str, value: object) -> tuple[float, float, float]:
    """Return one number for each colour."""
    values = value if isinstance(value, list) else [value] * 3
    numbers = [float(v) for v in values if isinstance(v, int | float) and v is not True and v is not False]
    if len(values) != 3 or len(numbers) != 3 or not all(map(math.isfinite, numbers)):
        raise ValueError(f"{name} is {str(value)[:80]!r} in its configuration; it must be three numbers")
    return numbers[0], numbers[1], numbers[2]
