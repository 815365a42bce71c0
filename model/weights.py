"""Load third-party ViT and MAE weights into our model: MAE's published files, timm's, Hugging Face's."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mimcl.model.checkpoint import CheckpointError
from mimcl.model.config import SIZES, ModelConfig
from mimcl.model.hf_names import from_hugging_face, is_hugging_face
from mimcl.model.normalisation import Normalisation, fold, normalisation_of
from mimcl.model.weight_files import read_description, read_tensors

_DROPPED = ("head.", "masker.")  # a classifier, and our own maskers' state
_PRECISIONS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Weights:
    """Tensors named as in MaskedAutoencoderViT, with a decoder if the file has one, and the model they fit."""

    config: ModelConfig
    image_size: int  # pixels
    tensors: dict[str, Tensor]
    has_decoder: bool
    normalisation: Normalisation | None = None  # of the pixels; None: not in the file, ours is assumed
    mask_ratio: float | None = None  # in training, if the file has it


def read_weights(path: Path) -> Weights:
    """Read a file of weights or a Hugging Face folder. Raises CheckpointError if it is not a plain ViT.

    Tensors are converted to float32 on the CPU. Sizes follow from the shapes; the kind of target (norm_pix_loss) from
    the configuration next to them, else ModelConfig's default. Learned positions are kept, heads are dropped. Without
    a decoder, the configuration has the default one. If pixels are normalised differently, an encoder's patch
    projection is adapted to ours; weights with a decoder are refused, because it predicts pixels in their
    normalisation.
    """
    tensors = read_tensors(path)
    try:
        if is_hugging_face(tensors):
            tensors = from_hugging_face(tensors)
        weights = check_tensors({name: tensor for name, tensor in tensors.items() if not name.startswith(_DROPPED)})
        found = read_description(path)
        if path.is_dir() or "model_type" in found:
            _check_config(found, weights.config)
        weights = _apply_description(weights, found)
    except (ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path} does not fit a masked autoencoder: {error}") from None
    return weights


def check_tensors(tensors: Mapping[str, Tensor]) -> Weights:
    """Return tensors under our names as weights, in float32.

    Raises ValueError for missing or unknown tensors, wrong shapes, and values that are not finite.
    """
    if not {"patch_embed.proj.weight", "blocks.0.norm1.weight"} <= tensors.keys():
        raise ValueError(f"it is not a ViT; its first tensors are {_few(tensors)}")
    if "fc_norm.weight" in tensors:
        raise ValueError(
            "it was fine-tuned on averaged tokens (it has fc_norm instead of the encoder's own norm); give the weights "
            "from before fine-tuning"
        )
    if "cls_token" not in tensors:
        raise ValueError("it has no class token")
    if "pos_embed" not in tensors:
        raise ValueError("it lacks pos_embed")
    has_decoder = any(name.startswith("decoder_") for name in tensors)
    config = _config_of(tensors, has_decoder)
    positions = _size(tensors["pos_embed"], 1)
    side = math.isqrt(max(positions - 1, 0))
    expected = _shapes(config, side, has_decoder)
    if missing := [name for name in expected if name not in tensors]:
        raise ValueError(f"it lacks {_few(missing)}")
    if unknown := [name for name in tensors if name not in expected]:
        raise ValueError(f"it has {_few(unknown)}, which a plain ViT does not have")
    if side < 1 or positions != 1 + side**2:
        raise ValueError(f"its {positions} positions are not a square grid and a class token")
    for name, shape in expected.items():
        if tensors[name].shape != shape:
            raise ValueError(f"{name} has shape {_by(tensors[name].shape)}; {config.name} has {_by(shape)}")
    converted = {name: _as_float32(name, tensors[name]) for name in expected}
    return Weights(config, side * config.patch_size, converted, has_decoder)


def _apply_description(weights: Weights, found: Mapping[str, Any]) -> Weights:
    """Add what the configuration says beyond the tensors. Raises ValueError when it does not fit."""
    # Hugging Face's default is not ours.
    norm_pix_loss = found.get("norm_pix_loss", False if found.get("model_type") == "vit_mae" else None)
    if weights.has_decoder and norm_pix_loss is not None:
        weights = replace(weights, config=replace(weights.config, norm_pix_loss=norm_pix_loss is True))
    ratio = found.get("mask_ratio")
    if weights.has_decoder and type(ratio) is float and 0 < ratio < 1:
        weights = replace(weights, mask_ratio=ratio)
    normalisation = normalisation_of(found)
    if normalisation is None or normalisation.is_ours:
        return replace(weights, normalisation=normalisation)
    if weights.has_decoder:
        raise ValueError(
            f"its decoder predicts pixels normalised with {normalisation}, ours are normalised with ImageNet's; give "
            "the encoder alone"
        )
    return replace(weights, tensors=fold(weights.tensors, normalisation), normalisation=normalisation)


def _as_float32(name: str, tensor: Tensor) -> Tensor:
    if tensor.dtype not in _PRECISIONS:
        raise ValueError(f"{name} is stored as {tensor.dtype}, which is not a precision of weights")
    values = tensor.to(torch.float32).contiguous()
    if not values.isfinite().all():
        raise ValueError(f"{name} has values that are not finite")
    return values


def _config_of(tensors: Mapping[str, Tensor], has_decoder: bool) -> ModelConfig:
    projection, width = tensors["patch_embed.proj.weight"], _size(tensors["cls_token"], 2)
    if projection.dim() != 4 or projection.shape[1] != 3:
        raise ValueError(
            f"patch_embed.proj.weight has shape {_by(projection.shape)}, not that of a projection of RGB patches"
        )
    depth = _depth(tensors, "blocks")
    names = [name for name, (w, d, _) in SIZES.items() if (w, d) == (width, depth)]
    if not names:
        known = ", ".join(f"{name} {w} x {d}" for name, (w, d, _) in SIZES.items())
        raise ValueError(f"its encoder is {width} wide and {depth} blocks deep; known sizes are {known}")
    config = ModelConfig(names[0], projection.shape[2])
    if not has_decoder:
        return config
    cross = "decoder_mixture.weights" in tensors
    first = "decoder_norm.weight" if cross else "decoder_embed.weight"
    if first not in tensors:
        raise ValueError(f"it lacks {first}")
    config = replace(config, decoder="cross" if cross else "self", decoder_depth=_depth(tensors, "decoder_blocks"))
    return replace(config, decoder_width=_size(tensors[first], 0))


def _check_config(found: Mapping[str, Any], config: ModelConfig) -> None:
    """Raise ValueError if config.json describes a model that differs from ours in ways the tensors do not show."""
    if "architecture" in found:  # timm's
        return
    wanted: dict[str, tuple[object, ...]] = {
        "model_type": ("vit", "vit_mae"),
        "hidden_act": ("gelu", None),
        "num_attention_heads": (SIZES[config.name][2],),
    }
    if found.get("model_type") == "vit_mae":
        wanted["decoder_num_attention_heads"] = (config.decoder_heads, None)
    for key, allowed in wanted.items():
        if found.get(key) not in allowed:
            raise ValueError(f"{key} is {str(found.get(key))[:80]!r} in its config.json; it must be {allowed[0]}")


def _shapes(config: ModelConfig, side: int, has_decoder: bool) -> dict[str, tuple[int, ...]]:
    """Return MaskedAutoencoderViT's shapes by name, for a grid of side^2 patches."""
    (width, depth, _), patch = SIZES[config.name], config.patch_size
    shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 1 + side**2, width),
        "patch_embed.proj.weight": (width, 3, patch, patch),
        "patch_embed.proj.bias": (width,),
        **_block_shapes("blocks", width, depth),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    if has_decoder:
        inner = config.decoder_width
        if config.decoder == "self":
            shapes |= {"decoder_embed.weight": (inner, width), "decoder_embed.bias": (inner,)}
            blocks = _block_shapes("decoder_blocks", inner, config.decoder_depth)
        else:
            shapes |= _mixture_shapes(config.decoder_depth, 1 + depth, width)
            attention = {"attn.q": (inner, inner), "attn.kv": (2 * inner, width), "attn.proj": (inner, inner)}
            blocks = _block_shapes("decoder_blocks", inner, config.decoder_depth, attention)
        shapes |= {
            "mask_token": (1, 1, inner),
            "decoder_pos_embed": (1, 1 + side**2, inner),
            **blocks,
            "decoder_norm.weight": (inner,),
            "decoder_norm.bias": (inner,),
            "decoder_pred.weight": (3 * patch**2, inner),
            "decoder_pred.bias": (3 * patch**2,),
        }
    return shapes


def _mixture_shapes(mixtures: int, layers: int, width: int) -> dict[str, tuple[int, ...]]:
    norms = (f"decoder_mixture.norms.{number}.{part}" for number in range(mixtures) for part in ("weight", "bias"))
    return {"decoder_mixture.weights": (mixtures, layers), **dict.fromkeys(norms, (width,))}


def _block_shapes(
    name: str, width: int, depth: int, attention: Mapping[str, tuple[int, int]] | None = None
) -> dict[str, tuple[int, ...]]:
    """Return the shapes of blocks; `attention` has those of its matrices, by default self-attention's."""
    if attention is None:
        attention = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)}
    matrices = {**attention, "mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)}
    shapes: dict[str, tuple[int, ...]] = {}
    for number in range(depth):
        for layer, shape in ({"norm1": (width,), "norm2": (width,)} | matrices).items():
            shapes[f"{name}.{number}.{layer}.weight"] = shape
            shapes[f"{name}.{number}.{layer}.bias"] = shape[:1]
    return shapes


def _depth(tensors: Iterable[str], blocks: str) -> int:
    return len({found[1] for name in tensors if (found := re.match(rf"{blocks}\.(\d+)\.", name))})


def _size(tensor: Tensor, dimension: int) -> int:
    return tensor.shape[dimension] if tensor.dim() > dimension else 0


def _by(shape: Iterable[int]) -> str:
    return " x ".join(map(str, shape)) or "a single number"


def _few(names: Iterable[str]) -> str:
    names = list(names)
    shown = [name if name.isprintable() else ascii(name) for name in names[:3]]  # no control codes from a file
    shown = [name if len(name) <= 60 else f"{name[:57]}..." for name in shown]
    return ", ".join(shown) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
