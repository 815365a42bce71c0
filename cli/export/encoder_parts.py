"""The parts of an encoder's export: for timm, Hugging Face or mimcl itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mimcl.cli.encoders.encoder import Encoder
from mimcl.cli.export.part import Compared, Part, json_files, quietly, quoted, timm_hub_call, timm_model
from mimcl.curriculum.masking.mask import Mask, keep_lowest
from mimcl.model.export import timm_arguments, timm_folder, vit_folder, vit_mae_folder
from mimcl.model.mae import MEAN, STD, patchify, reconstruction_loss, to_patches, unpatchify
from mimcl.pipeline.augment import EVALUATION_SIDE

_IMAGES = 2


class EncoderSample(NamedTuple):
    """Random images and our model's output for them."""

    images: Tensor  # (B, 3, S, S), normalised
    tokens: Tensor  # (B, 1 + L, width): all tokens, CLS token first
    features: Tensor  # (B, width): mean of the patch tokens
    noise: Tensor  # (B, L): patches with the lowest noise are kept
    mask: Mask
    decoded: tuple[Tensor, Tensor] | None  # predictions (B, L, P) and loss (0-d) with that mask; None without a decoder


@torch.no_grad()
def samples_of(encoder: Encoder) -> list[EncoderSample]:
    """Return samples in float64 and float32, on the CPU; encoders of one image size get the same images."""
    model, generator = encoder.model(), torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (_IMAGES, 3, model.image_size, model.image_size), generator=generator)
    noise = torch.rand(_IMAGES, model.num_patches, generator=generator)
    mask = keep_lowest(noise, encoder.config.masking.mask_ratio)
    samples = []
    for precision in (torch.float64, torch.float32):
        model.to(precision)
        patches = to_patches(pixels.to(torch.uint8), model.patch_size).to(precision)
        tokens, features = model.encode(model.embed(patches)), model.features(patches)
        decoded = None
        if encoder.has_decoder:
            output = model(patches, mask)
            decoded = output.pred, reconstruction_loss(output, mask.mask).mean()
        samples.append(EncoderSample(unpatchify(patches, model.patch_size), tokens, features, noise, mask, decoded))
    return samples


def parts_of(encoder: Encoder, target: str) -> list[Part[EncoderSample]]:
    """Return the parts of a format; hf has one for ViTModel and, with a decoder, one for ViTMAEForPreTraining."""
    if target == "timm":
        return [_timm(encoder)]
    if target == "safetensors":
        return [_own(encoder)]
    return [_vit(encoder), *([_vit_mae(encoder)] if has_vit_mae(encoder) else [])]


def has_vit_mae(encoder: Encoder) -> bool:
    """Whether ViTMAEForPreTraining can have the decoder: not one with cross-attention."""
    return encoder.has_decoder and encoder.config.model.decoder == "self"


def _timm(encoder: Encoder) -> Part[EncoderSample]:
    config, size = encoder.config.model, encoder.config.data.image_size
    call, load = timm_model(*timm_arguments(config, size))
    tensors, described = timm_folder(config, size, encoder.tensors, EVALUATION_SIDE)

    def compare(model: Any, sample: EncoderSample) -> Compared:
        tokens = model.forward_features(sample.images)
        return [(tokens, sample.tokens), (model(sample.images), sample.tokens[:, 0])]

    example = (
        "import timm\n\n"
        f"model = {call(Path())}.eval()\n"
        "tokens = model.forward_features(images)  # CLS token first\n"
        "features = tokens[:, 1:].mean(dim=1)  # mean of all patches, as mimcl evaluates\n"
        "cls_token = model(images)"
    )
    compared = "all tokens of forward_features, and the model's own output"
    return Part(
        "model.safetensors", tensors, call, timm_hub_call, example, load, compare, compared, {"config.json": described}
    )


def _vit(encoder: Encoder) -> Part[EncoderSample]:
    config, size = encoder.config.model, encoder.config.data.image_size
    tensors, described = vit_folder(config, size, encoder.tensors)

    def call(folder: Path) -> str:
        return f"ViTModel.from_pretrained({quoted(folder / 'vit')}, add_pooling_layer=False)"

    def hub_call(repository: str) -> str:
        return f'ViTModel.from_pretrained("{repository}", subfolder="vit", add_pooling_layer=False)'

    def load(folder: Path) -> nn.Module:
        from transformers import ViTModel

        with quietly():
            return ViTModel.from_pretrained(folder / "vit", add_pooling_layer=False, local_files_only=True)

    def compare(model: nn.Module, sample: EncoderSample) -> Compared:
        tokens = model(sample.images).last_hidden_state
        return [(tokens, sample.tokens), (tokens[:, 1:].mean(dim=1), sample.features)]

    example = (
        "from transformers import ViTModel\n\n"
        f"model = {call(Path())}.eval()\n"
        "tokens = model(images).last_hidden_state  # CLS token first\n"
        "features = tokens[:, 1:].mean(dim=1)  # mean of all patches, as mimcl evaluates"
    )
    compared = "ViTModel: last_hidden_state and its mean over the patches"
    files = json_files(described, size)
    return Part("vit/model.safetensors", tensors, call, hub_call, example, load, compare, compared, files)


def _vit_mae(encoder: Encoder) -> Part[EncoderSample]:
    config, size = encoder.config.model, encoder.config.data.image_size
    tensors, described = vit_mae_folder(config, size, encoder.tensors, encoder.config.masking.mask_ratio)

    def call(folder: Path) -> str:
        return f"ViTMAEForPreTraining.from_pretrained({quoted(folder / 'vit_mae')})"

    def hub_call(repository: str) -> str:
        return f'ViTMAEForPreTraining.from_pretrained("{repository}", subfolder="vit_mae")'

    def load(folder: Path) -> nn.Module:
        from transformers import ViTMAEForPreTraining

        with quietly():
            return ViTMAEForPreTraining.from_pretrained(folder / "vit_mae", local_files_only=True)

    def compare(model: nn.Module, sample: EncoderSample) -> Compared:
        theirs = model(sample.images, noise=sample.noise)
        assert sample.decoded is not None
        pred, loss = sample.decoded
        return [(theirs.logits, pred), (theirs.loss, loss), (theirs.mask, sample.mask.mask)]

    example = (
        "from transformers import ViTMAEForPreTraining\n\n"
        f"model = {call(Path())}.eval()\n"
        "loss = model(images).loss  # with a random mask"
    )
    compared = "ViTMAEForPreTraining: loss, logits and mask for the same noise"
    files = json_files(described, size)
    return Part("vit_mae/model.safetensors", tensors, call, hub_call, example, load, compare, compared, files)


def _own(encoder: Encoder) -> Part[EncoderSample]:
    def call(folder: Path) -> str:
        return f"Encoder.load(Path({quoted(folder / 'weights.safetensors')})).model()"

    def hub_call(repository: str) -> str:
        return f'Encoder.load(Path(hf_hub_download("{repository}", "weights.safetensors"))).model()'

    def load(folder: Path) -> nn.Module:
        return Encoder.load(folder / "weights.safetensors").model()

    def compare(model: Any, sample: EncoderSample) -> Compared:
        patches = patchify(sample.images, model.patch_size)
        pairs = [(model.encode(model.embed(patches)), sample.tokens)]
        if sample.decoded is None:
            return pairs
        output = model(patches, sample.mask)
        loss = reconstruction_loss(output, sample.mask.mask).mean()
        return [*pairs, *zip((output.pred, loss), sample.decoded, strict=True)]

    example = (
        "from pathlib import Path\n\n"
        "from mimcl.cli.encoders.encoder import Encoder\n"
        "from mimcl.model.mae import patchify\n\n"
        f"model = {call(Path())}\n"
        "features = model.features(patchify(images, model.patch_size))  # mean of all patches"
    )
    compared = "all tokens, the decoder's predictions, and the loss" if encoder.has_decoder else "all tokens"
    described: dict[str, Any] = {"image_mean": MEAN, "image_std": STD}
    if encoder.has_decoder:
        described |= {
            "norm_pix_loss": encoder.config.model.norm_pix_loss,
            "mask_ratio": encoder.config.masking.mask_ratio,
        }
    metadata = {name: json.dumps(value) for name, value in described.items()}
    tensors = {name: tensor for name, tensor in encoder.tensors.items() if not name.startswith("masker.")}
    return Part("weights.safetensors", tensors, call, hub_call, example, load, compare, compared, metadata=metadata)
