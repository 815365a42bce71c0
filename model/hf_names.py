"""Names of a ViT's tensors: ours, which are timm's and MAE's, and Hugging Face's, which splits queries, keys, values.

Hugging Face's names are those of its hub, for ViTModel "embeddings.cls_token", "encoder.layer.0...", for
ViTMAEForPreTraining the same after "vit.", and "decoder.decoder_layers.0...". Versions from 5 on have others in memory
("layers.0.attention.q_proj"), and write "decoder.decoder_encoder.layer.0...": all of them are read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

_BESIDE = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
    "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
    "norm.weight": "layernorm.weight",
    "norm.bias": "layernorm.bias",
}
_IN_BLOCK = {  # ours, that of the hub, that in the memory of versions from 5 on
    "norm1": ("layernorm_before", "layernorm_before"),
    "attn.q": ("attention.attention.query", "attention.q_proj"),
    "attn.k": ("attention.attention.key", "attention.k_proj"),
    "attn.v": ("attention.attention.value", "attention.v_proj"),
    "attn.proj": ("attention.output.dense", "attention.o_proj"),
    "norm2": ("layernorm_after", "layernorm_after"),
    "mlp.fc1": ("intermediate.dense", "mlp.fc1"),
    "mlp.fc2": ("output.dense", "mlp.fc2"),
}
_TO_OURS = {theirs: ours for ours, names in _IN_BLOCK.items() for theirs in names}
_TO_OURS_BESIDE = {theirs: ours for ours, theirs in _BESIDE.items()}
_BLOCK = re.compile(
    r"(?:vit\.)?(decoder\.decoder_layers|decoder\.decoder_encoder\.layer|encoder\.layer|layers)\.(\d+)\.(.+)\.(\w+)"
)
_HEADS = ("pooler.", "classifier.")  # what stands on an encoder


def is_hugging_face(names: Mapping[str, Tensor]) -> bool:
    """Whether they are named as Hugging Face names a ViT's."""
    return any("embeddings.patch_embeddings." in name for name in names)


def from_hugging_face(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same under our names, without heads; a name that is none of a ViT's stays."""
    ours = {
        _our_name(name): tensor for name, tensor in tensors.items() if not name.removeprefix("vit.").startswith(_HEADS)
    }
    for first in [name for name in ours if ".attn.q." in name]:
        names = [first.replace(".attn.q.", f".attn.{part}.") for part in "qkv"]
        if all(name in ours for name in names):
            ours[first.replace(".attn.q.", ".attn.qkv.")] = torch.cat([ours.pop(name) for name in names])
    return ours


def to_vit(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our encoder's tensors under ViTModel's names."""
    return {
        theirs: part
        for name, tensor in tensors.items()
        if not name.startswith(("decoder_", "mask_token"))
        for theirs, part in _split(name, tensor)
    }


def to_vit_mae(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our encoder's and decoder's tensors under ViTMAEForPreTraining's names."""
    named = {f"vit.{name}": tensor for name, tensor in to_vit(tensors).items()}
    for name, tensor in tensors.items():
        if name.startswith(("decoder_", "mask_token")):
            named |= {f"decoder.{theirs}": part for theirs, part in _split(name, tensor)}
    return named


def _split(name: str, tensor: Tensor) -> list[tuple[str, Tensor]]:
    """One tensor of ours under Hugging Face's name, or three."""
    match = re.fullmatch(r"(decoder_)?blocks\.(\d+)\.(.+)\.(\w+)", name)
    if not match:
        return [(_BESIDE.get(name, name), tensor)]
    decoder, number, layer, kind = match.groups()
    block = f"{'decoder_layers' if decoder else 'encoder.layer'}.{number}"
    if layer == "attn.qkv":
        parts = zip("qkv", tensor.chunk(3), strict=True)
        return [(f"{block}.{_IN_BLOCK[f'attn.{part}'][0]}.{kind}", chunk.contiguous()) for part, chunk in parts]
    return [(f"{block}.{_IN_BLOCK[layer][0]}.{kind}", tensor)]


def _our_name(name: str) -> str:
    if match := _BLOCK.fullmatch(name):
        where, number, layer, kind = match.groups()
        blocks = "decoder_blocks" if where.startswith("decoder") else "blocks"
        return f"{blocks}.{number}.{_TO_OURS.get(layer, layer)}.{kind}"
    bare = name.removeprefix("vit.")
    return _TO_OURS_BESIDE.get(bare, bare.removeprefix("decoder."))
