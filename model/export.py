"""Convert our weights for timm's VisionTransformer and for Hugging Face's ViT, ViTMAE and BEiT."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from mimcl.model.config import SIZES, ModelConfig
from mimcl.model.hf_names import to_beit, to_vit, to_vit_mae
from mimcl.model.mae import MEAN, STD, encoder_weights

_EPSILON = 1e-6  # in all layer norms; Hugging Face's default is 1e-12
_BICUBIC = 3  # in Pillow
_TIMM = {  # timm's name and patch size, all for images of 224 px
    "vit_tiny": ("vit_tiny_patch16_224", 16),
    "vit_small": ("vit_small_patch16_224", 16),
    "vit_base": ("vit_base_patch16_224", 16),
    "vit_large": ("vit_large_patch16_224", 16),
    "vit_huge": ("vit_huge_patch14_224", 14),
}

Folder = tuple[dict[str, Tensor], dict[str, Any]]  # tensors, config.json


def timm_arguments(config: ModelConfig, image_size: int, classes: int = 0) -> tuple[str, dict[str, int | str]]:
    """Return timm's name of the model and the arguments of `timm.create_model` that differ from its defaults.

    Without classes there is no head, and the model's output is the encoder's; a classifier averages the patch tokens.
    """
    name, patch = _TIMM[config.name]
    sizes = {"img_size": (image_size, 224), "patch_size": (config.patch_size, patch)}
    arguments: dict[str, int | str] = {"num_classes": classes}
    if classes:
        arguments["global_pool"] = "avg"
    return name, arguments | {key: size for key, (size, usual) in sizes.items() if size != usual}


def timm_folder(config: ModelConfig, image_size: int, tensors: Mapping[str, Tensor], crop: float) -> Folder:
    """Return an encoder's state dict in timm, and the config.json with which timm loads a folder or hub repository.

    `crop` is the side of the evaluation square relative to the image's shorter side. Without config.json, timm would
    use the mean and deviation of its own weights of the same name.
    """
    return encoder_weights(tensors), _timm_config(config, image_size, crop, ())


def timm_classifier(
    config: ModelConfig, image_size: int, tensors: Mapping[str, Tensor], classes: Sequence[str], crop: float
) -> Folder:
    """Return a classifier's state dict and config.json in timm, with the names of its classes; see `timm_folder`."""
    return dict(tensors), _timm_config(config, image_size, crop, classes)


def _timm_config(config: ModelConfig, image_size: int, crop: float, classes: Sequence[str]) -> dict[str, Any]:
    name, arguments = timm_arguments(config, image_size, len(classes))
    described = {
        "architecture": name,
        "num_classes": len(classes),
        "num_features": SIZES[config.name][0],
        "global_pool": "avg" if classes else "token",
        "model_args": {key: value for key, value in arguments.items() if key != "num_classes"},
        "pretrained_cfg": {
            "tag": "mimcl",
            "num_classes": len(classes),
            "input_size": [3, image_size, image_size],
            "fixed_input_size": True,
            "interpolation": "bicubic",
            "crop_pct": crop,
            "crop_mode": "center",
            "mean": list(MEAN),
            "std": list(STD),
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }
    if classes:
        described["label_names"] = list(classes)
    return described


def vit_folder(config: ModelConfig, image_size: int, tensors: Mapping[str, Tensor]) -> Folder:
    """Convert the encoder for Hugging Face's ViTModel, without its pooler."""
    return to_vit(tensors), _sizes(config, image_size) | {"architectures": ["ViTModel"], "model_type": "vit"}


def vit_mae_folder(config: ModelConfig, image_size: int, tensors: Mapping[str, Tensor], mask_ratio: float) -> Folder:
    """Convert encoder and decoder for Hugging Face's ViTMAEForPreTraining."""
    described = _sizes(config, image_size) | {
        "architectures": ["ViTMAEForPreTraining"],
        "model_type": "vit_mae",
        "decoder_hidden_size": config.decoder_width,
        "decoder_num_hidden_layers": config.decoder_depth,
        "decoder_num_attention_heads": config.decoder_heads,
        "decoder_intermediate_size": 4 * config.decoder_width,
        "mask_ratio": mask_ratio,
        "norm_pix_loss": config.norm_pix_loss,
    }
    return to_vit_mae(tensors), described


def beit_folder(config: ModelConfig, image_size: int, tensors: Mapping[str, Tensor], classes: Sequence[str]) -> Folder:
    """Convert a classifier for Hugging Face's BeitForImageClassification.

    ViTForImageClassification classifies the CLS token, after a norm of all tokens. BEiT without its layer scale and
    relative positions is our classifier: the mean of the patch tokens, then the norm, then the head.
    """
    described = _sizes(config, image_size) | {
        "architectures": ["BeitForImageClassification"],
        "model_type": "beit",
        "use_mean_pooling": True,
        "use_absolute_position_embeddings": True,
        "use_relative_position_bias": False,
        "use_shared_relative_position_bias": False,
        "use_mask_token": False,
        "layer_scale_init_value": 0.0,
        "drop_path_rate": 0.0,
        "id2label": {str(number): name for number, name in enumerate(classes)},
        "label2id": {name: number for number, name in enumerate(classes)},
        "problem_type": "single_label_classification",
    }
    return to_beit(tensors), described


def preprocessor(image_size: int, crop: float) -> dict[str, Any]:
    """Return preprocessor_config.json: the shorter side is scaled to image_size / crop, then the centre is cropped."""
    return {
        "image_processor_type": "BitImageProcessor",  # Hugging Face's ViTImageProcessor does not crop
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": round(image_size / crop)},
        "resample": _BICUBIC,
        "do_center_crop": True,
        "crop_size": {"height": image_size, "width": image_size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(MEAN),
        "image_std": list(STD),
    }


def _sizes(config: ModelConfig, image_size: int) -> dict[str, Any]:
    width, depth, heads = SIZES[config.name]
    return {
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": _EPSILON,
        "qkv_bias": True,
        "image_size": image_size,
        "patch_size": config.patch_size,
        "num_channels": 3,
        "torch_dtype": "float32",
    }
