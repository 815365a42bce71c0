"""Read the weights of a fine-tuned classifier: those of `mimcl eval finetune`, and our exports of them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from mimcl.model.checkpoint import CheckpointError
from mimcl.model.config import SIZES, ModelConfig
from mimcl.model.evaluate.finetune import Classifier
from mimcl.model.hf_names import from_beit, is_hugging_face
from mimcl.model.normalisation import normalisation_of
from mimcl.model.weight_files import read_description, read_tensors
from mimcl.model.weights import check_tensors

DESCRIPTION = "classifier.json"  # beside fine-tuned weights
FORMAT = "mimcl-classifier/1"
_MODULE = "vit."  # prefix of the names in Classifier's state dict
_NORM, _HEAD = "fc_norm.", "head."


@dataclass(frozen=True)
class ClassifierWeights:
    """A classifier's tensors, named as in `Classifier.vit`, the model they fit, and its classes by logit."""

    config: ModelConfig
    image_size: int  # pixels
    classes: tuple[str, ...]
    tensors: dict[str, Tensor]  # float32

    def model(self) -> Classifier:
        """Build the classifier, in evaluation mode, on the CPU."""
        model = Classifier(self.config, self.image_size, len(self.classes), drop_path=0.0)
        model.load_state_dict({_MODULE + name: tensor for name, tensor in self.tensors.items()})
        return model.eval()


def classifier_description(
    config: ModelConfig, image_size: int, classes: Sequence[str], precision: str, data: str, images: tuple[int, int]
) -> dict[str, Any]:
    """Return the content of classifier.json: what the weights do not say of themselves.

    `classes` are in the order of the logits; `precision` is that of training and evaluation, `data` the shards, and
    `images` the numbers of labelled train and val images.
    """
    return {
        "format": FORMAT,
        "model": config.name,
        "patch_size": config.patch_size,
        "image_size": image_size,
        "pool": "mean",
        "precision": precision,
        "data": data,
        "train": images[0],
        "val": images[1],
        "classes": list(classes),
    }


def read_classifier(path: Path, classes: Sequence[str] | None = None) -> ClassifierWeights:
    """Read a file of weights, or a folder with a config.json: our safetensors, timm's or Hugging Face's layout.

    `classes` None are those that the file, or the config.json beside it, names. Raises CheckpointError if it is not a
    classifier, averages other tokens or expects other pixels than ours.
    """
    tensors, found = read_tensors(path), read_description(path)
    try:
        if is_hugging_face(tensors):
            _require_beit(found)
            tensors = from_beit(tensors)
        tensors = {name.removeprefix(_MODULE): tensor for name, tensor in tensors.items()}
        if not {_NORM + "weight", _HEAD + "weight", _HEAD + "bias"} <= tensors.keys() or "norm.weight" in tensors:
            raise ValueError("it has no head, or one on the CLS token; give weights that were fine-tuned by mimcl")
        encoder = check_tensors(
            {name.replace(_NORM, "norm."): tensor for name, tensor in tensors.items() if not name.startswith(_HEAD)}
        )
        names = tuple(classes) if classes is not None else _classes_of(found)
        _require_our_pixels(found)
        shapes = {"weight": (len(names), SIZES[encoder.config.name][0]), "bias": (len(names),)}
        head = {_HEAD + kind: tensors[_HEAD + kind].float().contiguous() for kind in shapes}
        for kind, shape in shapes.items():
            if head[_HEAD + kind].shape != shape:
                raise ValueError(f"its head does not have one output for each of its {len(names)} classes")
        if not all(tensor.isfinite().all() for tensor in head.values()):
            raise ValueError("its head has values that are not finite")
    except (ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path} is not a classifier that mimcl can use: {error}") from None
    ours = {re.sub(r"^norm\.", _NORM, name): tensor for name, tensor in encoder.tensors.items()}
    return ClassifierWeights(encoder.config, encoder.image_size, names, ours | head)


def read_classifier_description(path: Path) -> dict[str, Any] | None:
    """Read classifier.json in a folder; None if there is none. Raises CheckpointError if it is damaged."""
    try:
        found = json.loads((path / DESCRIPTION).read_bytes())
        texts, numbers = [found["precision"], found["data"]], [found["train"], found["val"]]
        valid = all(isinstance(text, str) for text in texts) and all(type(number) is int for number in numbers)
        if found["format"] == FORMAT and valid and _is_list_of_text(found["classes"]):
            return found
        reason = "unknown format"
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        reason = type(error).__name__
    advice = "remove it and fine-tune again with the same command"
    raise CheckpointError(f"{path / DESCRIPTION} cannot be read ({reason}); {advice}")


def _classes_of(found: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names in our own metadata, timm's label_names or Hugging Face's id2label. Raises ValueError."""
    names = found.get("classes", found.get("label_names"))
    if isinstance(by_number := found.get("id2label"), dict):
        names = [by_number.get(str(number)) for number in range(len(by_number))]
    if not _is_list_of_text(names):
        raise ValueError("neither it nor a config.json beside it names its classes; give the folder of an export")
    return tuple(names)


def _is_list_of_text(names: object) -> bool:
    return isinstance(names, list) and len(names) > 0 and all(isinstance(name, str) for name in names)


def _require_beit(found: Mapping[str, Any]) -> None:
    """Raise ValueError for a Hugging Face model other than `mimcl export` writes."""
    wanted = {"model_type": "beit", "use_mean_pooling": True, "layer_scale_init_value": 0.0, "hidden_act": "gelu"}
    for key, value in wanted.items():
        if found.get(key) != value:
            raise ValueError(
                f"{key} is {str(found.get(key))[:80]!r} in its config.json; exports of mimcl have {value!r}"
            )


def _require_our_pixels(found: Mapping[str, Any]) -> None:
    normalisation = normalisation_of(found)
    if normalisation is not None and not normalisation.is_ours:
        raise ValueError(f"it expects pixels normalised with {normalisation}, not with ImageNet's constants")
