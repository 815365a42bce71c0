"""Convert the names of a ViT's tensors between ours (timm's and MAE's) and Hugging Face's.

Hugging Face splits queries, keys and values. On its hub, ViTModel has "embeddings.cls_token", "encoder.layer.0...";
ViTMAEForPreTraining has the same after "vit.", and "decoder.decoder_layers.0..."; BeitForImageClassification has it
after "beit.", and "classifier". transformers 5 and later use other names in memory ("layers.0.attention.q_proj") and
write "decoder.decoder_encoder.layer.0..."; of the ViTs, all of them can be read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

_OUTSIDE_BLOCKS = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
    "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
    "norm.weight": "layernorm.weight",
    "norm.bias": "layernorm.bias",
}
_IN_BLOCK = {  # ours: (on the hub, in memory since transformers 5)
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
_TO_OURS_OUTSIDE_BLOCKS = {theirs: ours for ours, theirs in _OUTSIDE_BLOCKS.items()}
_BLOCK = re.compile(
    r"(?:vit\.)?(decoder\.decoder_layers|decoder\.decoder_encoder\.layer|encoder\.layer|layers)\.(\d+)\.(.+)\.(\w+)"
)
_HEADS = ("pooler.", "classifier.")


def is_hugging_face(names: Mapping[str, Tensor]) -> bool:
    """Whether the tensors have Hugging Face's names of a ViT."""
    return any("embeddings.patch_embeddings." in name for name in names)


def from_hugging_face(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors under our names, without heads; unknown names are kept."""
    ours = {
        _our_name(name): tensor for name, tensor in tensors.items() if not name.removeprefix("vit.").startswith(_HEADS)
    }
    for first in [name for name in ours if ".attn.q." in name]:
        names = [first.replace(".attn.q.", f".attn.{part}.") for part in "qkv"]
        if all(name in ours for name in names):
            ours[first.replace(".attn.q.", ".attn.qkv.")] = torch.cat([ours.pop(name) for name in names])
    return ours


def to_vit(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return our encoder's tensors under ViTModel's names."""
    return {
        theirs: part
        for name, tensor in tensors.items()
        if not name.startswith(("decoder_", "mask_token"))
        for theirs, part in _split(name, tensor)
    }


def to_vit_mae(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return our encoder's and decoder's tensors under ViTMAEForPreTraining's names."""
    named = {f"vit.{name}": tensor for name, tensor in to_vit(tensors).items()}
    for name, tensor in tensors.items():
        if name.startswith(("decoder_", "mask_token")):
            named |= {f"decoder.{theirs}": part for theirs, part in _split(name, tensor)}
    return named


def to_beit(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a classifier that averages patch tokens under BeitForImageClassification's names.

    BEiT has no biases of keys. They change no output: they add the same number to all attention scores of a query.
    """
    encoder = {name: tensor for name, tensor in tensors.items() if not name.startswith(("fc_norm.", "head."))}
    named = {f"beit.{name}": part for name, part in to_vit(encoder).items() if not name.endswith(".key.bias")}
    for kind in ("weight", "bias"):
        named[f"beit.pooler.layernorm.{kind}"] = tensors[f"fc_norm.{kind}"]
        named[f"classifier.{kind}"] = tensors[f"head.{kind}"]
    return named


def from_beit(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a BeitForImageClassification under our names; biases of keys are zero."""
    named = {name.removeprefix("beit."): tensor for name, tensor in tensors.items()}
    for name in [name for name in named if name.endswith(".query.bias")]:
        named[name.replace(".query.", ".key.")] = torch.zeros_like(named[name])
    moved = {"pooler.layernorm.": "fc_norm.", "classifier.": "head."}
    heads = {
        ours + name.removeprefix(theirs): named[name]
        for theirs, ours in moved.items()
        for name in named
        if name.startswith(theirs)
    }
    return from_hugging_face(named) | heads


def _split(name: str, tensor: Tensor) -> list[tuple[str, Tensor]]:
    """Return one of our tensors under Hugging Face's name; queries, keys and values become three tensors."""
    match = re.fullmatch(r"(decoder_)?blocks\.(\d+)\.(.+)\.(\w+)", name)
    if not match:
        return [(_OUTSIDE_BLOCKS.get(name, name), tensor)]
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
    return _TO_OURS_OUTSIDE_BLOCKS.get(bare, bare.removeprefix("decoder."))
