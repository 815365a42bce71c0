"""A part of an export: tensors to write, how to load them, and how to compare the result with our model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mimcl.model.export import preprocessor
from mimcl.pipeline.augment import EVALUATION_SIDE
from mimcl.pipeline.files import write_json


class Sample(Protocol):
    """Random images and our model's output for them."""

    @property
    def images(self) -> Tensor: ...  # (B, 3, S, S), normalised


S = TypeVar("S", bound=Sample)
Compared = list[tuple[Tensor, Tensor]]  # theirs, ours


@dataclass(frozen=True)
class Part(Generic[S]):
    """A file of weights and the files next to it. Paths are relative to the export's folder."""

    file: str
    tensors: Mapping[str, Tensor]
    call: Callable[[Path], str]  # export folder -> Python expression that loads the weights
    hub_call: Callable[[str], str]  # hub repository, USER/NAME -> Python expression that loads the weights from there
    example: str  # Python lines, run in the export folder, that compute features of `images`
    load: Callable[[Path], nn.Module]  # does what `call` says
    compare: Callable[[nn.Module, S], Compared]
    compared: str  # what `compare` compares, in words
    json_files: Mapping[str, dict[str, Any]] = field(default_factory=dict)  # in the same folder
    metadata: Mapping[str, str] = field(default_factory=dict)  # of the safetensors file


@torch.no_grad()
def differences(part: Part[S], folder: Path, samples: Sequence[S]) -> list[float]:
    """Return the maximum absolute difference between the model loaded from `folder` and ours, for each sample."""
    model = part.load(folder).eval()
    found = []
    for sample in samples:
        pairs = part.compare(model.to(sample.images.dtype), sample)
        found.append(torch.stack([(theirs - ours).abs().max().double() for theirs, ours in pairs]).max().item())
    return found


def write(part: Part[Any], folder: Path) -> None:
    """Write the files of a part into the export's folder."""
    path = folder / part.file
    path.parent.mkdir(exist_ok=True)
    # Hugging Face only loads files with this format entry.
    metadata = {"format": "pt", **part.metadata}
    save_file({name: tensor.contiguous() for name, tensor in part.tensors.items()}, path, metadata)
    for name, content in part.json_files.items():
        write_json(path.parent / name, content)


def versions(target: str) -> str:
    """Name the versions of the libraries that an export in this format is verified with."""
    found = [f"timm {timm.__version__}"] if target == "timm" else []
    if target == "hf":
        import transformers

        found = [f"transformers {transformers.__version__}"]
    return ", ".join([*found, f"torch {torch.__version__.partition('+')[0]}"])


def timm_model(name: str, arguments: Mapping[str, Any]) -> tuple[Callable[[Path], str], Callable[[Path], nn.Module]]:
    """Return `call` and `load` of a part that `timm.create_model` loads with these arguments."""
    keywords = ", ".join(f"{key}={json.dumps(value)}" for key, value in arguments.items())

    def call(folder: Path) -> str:
        return f'timm.create_model("{name}", {keywords}, checkpoint_path={quoted(folder / "model.safetensors")})'

    def load(folder: Path) -> nn.Module:
        path = str(folder / "model.safetensors")
        model: nn.Module = timm.create_model(name, pretrained=False, checkpoint_path=path, **arguments)
        return model

    return call, load


def timm_hub_call(repository: str) -> str:
    """Return the call by which timm loads the model that a hub repository's config.json describes."""
    return f'timm.create_model("hf-hub:{repository}", pretrained=True)'


def json_files(described: dict[str, Any], image_size: int) -> dict[str, dict[str, Any]]:
    return {"config.json": described, "preprocessor_config.json": preprocessor(image_size, EVALUATION_SIDE)}


def quoted(path: Path) -> str:
    return json.dumps(str(path), ensure_ascii=False)


@contextmanager
def quietly() -> Iterator[None]:
    """Silence transformers' progress bars and reports."""
    from transformers.utils import logging

    level, had_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if had_bars:
            logging.enable_progress_bar()
