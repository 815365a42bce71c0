"""Find and load a fine-tuned classifier: of a run, of a folder of `mimcl eval finetune`, or of an export."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mimcl.cli.console import first_few
from mimcl.cli.encoders.encoder import Encoder
from mimcl.cli.errors import ConfigError
from mimcl.cli.run.resolve import has_bfloat16
from mimcl.cli.suggest import command
from mimcl.model.checkpoint import CheckpointError
from mimcl.model.classifier_weights import (
    DESCRIPTION,
    ClassifierWeights,
    read_classifier,
    read_classifier_description,
)
from mimcl.model.weight_files import read_description
from mimcl.pipeline.files import list_folder

WEIGHTS, RESULT, SETTINGS = "weights.safetensors", "result.json", "settings.json"  # in the folder of a fine-tuning


@dataclass(frozen=True)
class FineTuned:
    """A classifier with what is known of its training; of an export, only the weights are known."""

    path: Path  # the folder of the fine-tuning, or the exported file or folder
    weights: ClassifierWeights
    precision: Literal["bfloat16", "float32"]  # to compute in, unless another one is asked for
    settings: Mapping[str, Any] = field(default_factory=dict)  # of the fine-tuning
    accuracies: Mapping[str, float] = field(default_factory=dict)  # top1 and top5 on the val images
    data: str = ""  # the shards it was fine-tuned and evaluated on
    train: int = 0  # number of labelled train images
    val: int = 0  # number of labelled val images, without bad ones

    @classmethod
    def load(cls, path: Path) -> FineTuned:
        """Load the only fine-tuning of a run or checkpoint, the folder or weights of one, or an export.

        The weights are those of the last step. Raises CheckpointError if there are none, or if the fine-tuning has not
        finished; ConfigError if the run has several.
        """
        if path.name == WEIGHTS and (path.parent / SETTINGS).exists():
            path = path.parent
        if is_finetuning(path):
            return cls._from_finetuning(path)
        if (path / WEIGHTS).exists():  # the folder of an export for mimcl itself
            path = path / WEIGHTS
        if (path.is_file() or (path / "config.json").exists()) and _names_classes(path):
            return cls(path, read_classifier(path), "bfloat16" if has_bfloat16() else "float32")
        return cls._from_finetuning(finetuning_of(path))

    @classmethod
    def _from_finetuning(cls, folder: Path) -> FineTuned:
        again = "fine-tune again with the same command"
        if not is_finished(folder):
            raise CheckpointError(f"the fine-tuning in {folder} has not finished; {again} to resume it")
        about = read_classifier_description(folder)
        if about is None:
            raise CheckpointError(
                f"{folder} has no {DESCRIPTION} with the names of the classes (made by an earlier version of mimcl); "
                f"{again}, which adds it"
            )
        weights, result = read_classifier(folder / WEIGHTS, about["classes"]), _read(folder / RESULT)
        left_out = result.pop("left_out", 0)
        return cls(
            folder,
            weights,
            "bfloat16" if about["precision"] == "bfloat16" else "float32",
            _read(folder / SETTINGS),
            result,
            about["data"],
            about["train"],
            about["val"] - left_out,
        )


def is_finetuning(path: Path) -> bool:
    """Whether it is a folder that `mimcl eval finetune` writes."""
    return (path / SETTINGS).exists() and path.parent.name == "finetune"


def is_finished(folder: Path) -> bool:
    return (folder / RESULT).exists() and (folder / WEIGHTS).exists()


def finetuning_of(path: Path) -> Path:
    """Return the folder of the only finished fine-tuning of a run, a checkpoint or a file of weights.

    Raises CheckpointError if there is none, ConfigError if there are several.
    """
    folders = _finetunings(path if (path / "evaluation" / "finetune").is_dir() else Encoder.load(path).home)
    finished = [folder for folder in folders if is_finished(folder)]
    if len(finished) > 1:
        shown = (f"{folder} ({100 * _read(folder / RESULT).get('top1', 0):.1f} %)" for folder in finished)
        raise ConfigError(f"{path} has {len(finished)} fine-tuned classifiers; give one of {first_few(shown)}")
    if not finished and folders:
        return folders[0]  # of which `load` says that it has not finished
    if not finished:
        raise CheckpointError(f"{path} has no fine-tuned classifier; make one: {command('eval finetune', path)}")
    return finished[0]


def has_finished_finetuning(home: Path) -> bool:
    """Whether results about an encoder, in `home`, include a finished fine-tuning."""
    return any(map(is_finished, _finetunings(home)))


def _finetunings(home: Path) -> list[Path]:
    return [folder for folder in list_folder(home / "evaluation" / "finetune") if is_finetuning(folder)]


def _names_classes(path: Path) -> bool:
    """Whether a file or folder names classes; otherwise it has the weights of an encoder."""
    found = read_description(path)
    return any(name in found for name in ("classes", "label_names", "id2label"))


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
