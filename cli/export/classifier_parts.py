"""The parts of a fine-tuned classifier's export: for timm, Hugging Face or mimcl itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mimcl.cli.encoders.finetuned import FineTuned
from mimcl.cli.export.part import Compared, Part, json_files, quietly, quoted, timm_hub_call, timm_model
from mimcl.model.export import beit_folder, timm_arguments, timm_classifier
from mimcl.model.mae import MEAN, STD
from mimcl.pipeline.augment import EVALUATION_SIDE

_IMAGES = 2


class ClassifierSample(NamedTuple):
    """Random images and our classifier's output for them."""

    images: Tensor  # (B, 3, S, S), normalised
    logits: Tensor  # (B, C)


@torch.no_grad()
def samples_of_classifier(tuned: FineTuned) -> list[ClassifierSample]:
    """Return samples in float64 and float32, on the CPU; classifiers of one image size get the same images."""
    size, generator = tuned.weights.image_size, torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (_IMAGES, 3, size, size), generator=generator)
    model, samples = tuned.weights.model(), []
    for precision in (torch.float64, torch.float32):
        mean, std = (torch.tensor(values, dtype=precision).view(3, 1, 1) for values in (MEAN, STD))
        images = (pixels.to(precision) / 255 - mean) / std
        samples.append(ClassifierSample(images, model.to(precision)(images)))
    return samples


def part_of_classifier(tuned: FineTuned, target: str) -> Part[ClassifierSample]:
    """Return the only part of a format."""
    return {"timm": _timm, "hf": _beit, "safetensors": _own}[target](tuned)


def _timm(tuned: FineTuned) -> Part[ClassifierSample]:
    weights = tuned.weights
    call, load = timm_model(*timm_arguments(weights.config, weights.image_size, len(weights.classes)))
    tensors, described = timm_classifier(
        weights.config, weights.image_size, weights.tensors, weights.classes, EVALUATION_SIDE
    )

    example = (
        "import json\n\n"
        "import timm\n\n"
        f"model = {call(Path())}.eval()\n"
        'classes = json.load(open("config.json", encoding="utf-8"))["label_names"]\n'
        "with torch.inference_mode():\n"
        "    probabilities = model(images).softmax(dim=1)[0]\n"
        "print(classes[probabilities.argmax()], probabilities.max().item())"
    )
    files = {"config.json": described}
    return Part("model.safetensors", tensors, call, timm_hub_call, example, load, _compare, "logits", files)


def _beit(tuned: FineTuned) -> Part[ClassifierSample]:
    weights = tuned.weights
    tensors, described = beit_folder(weights.config, weights.image_size, weights.tensors, weights.classes)

    def call(folder: Path) -> str:
        return f"AutoModelForImageClassification.from_pretrained({quoted(folder)})"

    def hub_call(repository: str) -> str:
        return f'AutoModelForImageClassification.from_pretrained("{repository}")'

    def load(folder: Path) -> nn.Module:
        from transformers import AutoModelForImageClassification

        with quietly():
            return AutoModelForImageClassification.from_pretrained(folder, local_files_only=True)

    def compare(model: nn.Module, sample: ClassifierSample) -> Compared:
        return [(model(sample.images).logits, sample.logits)]

    example = (
        "from transformers import AutoModelForImageClassification\n\n"
        f"model = {call(Path())}.eval()\n"
        "with torch.inference_mode():\n"
        "    probabilities = model(images).logits.softmax(dim=1)[0]\n"
        "print(model.config.id2label[probabilities.argmax().item()], probabilities.max().item())"
    )
    files = json_files(described, weights.image_size)
    compared = "logits of BeitForImageClassification"
    return Part("model.safetensors", tensors, call, hub_call, example, load, compare, compared, files)


def _own(tuned: FineTuned) -> Part[ClassifierSample]:
    weights = tuned.weights

    def call(folder: Path) -> str:
        return f"FineTuned.load(Path({quoted(folder / 'weights.safetensors')})).weights"

    def hub_call(repository: str) -> str:
        return f'FineTuned.load(Path(hf_hub_download("{repository}", "weights.safetensors"))).weights'

    def load(folder: Path) -> nn.Module:
        return FineTuned.load(folder / "weights.safetensors").weights.model()

    example = (
        "from pathlib import Path\n\n"
        "from mimcl.cli.encoders.finetuned import FineTuned\n\n"
        f"weights = {call(Path())}\n"
        "with torch.inference_mode():\n"
        "    probabilities = weights.model()(images).softmax(dim=1)[0]\n"
        "print(weights.classes[probabilities.argmax()], probabilities.max().item())"
    )
    described: dict[str, Any] = {"image_mean": MEAN, "image_std": STD, "classes": weights.classes}
    metadata = {name: json.dumps(value) for name, value in described.items()}
    tensors = weights.tensors
    return Part("weights.safetensors", tensors, call, hub_call, example, load, _compare, "logits", metadata=metadata)


def _compare(model: nn.Module, sample: ClassifierSample) -> Compared:
    return [(model(sample.images), sample.logits)]
