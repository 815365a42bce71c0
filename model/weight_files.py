"""Read third-party files of tensors: safetensors, torch pickles, Hugging Face folders. No code in them is run."""

from __future__ import annotations

import argparse
import json
import warnings
import zipfile
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from mimcl.model.ascii_path import ascii_path
from mimcl.model.checkpoint import CheckpointError

_INSIDE = ("model", "state_dict")  # keys of the weights in a training checkpoint
_WRAPPERS = ("module.", "_orig_mod.")  # prefixes by DistributedDataParallel and torch.compile
_ON_HUBS = ("model.safetensors", "pytorch_model.bin")
METADATA = ("norm_pix_loss", "mask_ratio", "image_mean", "image_std", "classes")  # JSON values in our own files
_MAX_JSON = 1 << 24  # bytes; an index of shards has one line per tensor


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return all tensors of a file or a Hugging Face folder, on the CPU, under their names. Raises CheckpointError."""
    tensors = _read_folder(path) if path.is_dir() else _read_file(path)
    for wrapper in _WRAPPERS:
        if tensors and all(name.startswith(wrapper) for name in tensors):
            tensors = {name.removeprefix(wrapper): tensor for name, tensor in tensors.items()}
    return tensors


def read_description(path: Path) -> dict[str, Any]:
    """Read the configuration next to the tensors: config.json, preprocessor_config.json, our safetensors metadata.

    A folder must have a config.json. For a single file, the JSON files next to it count only if it has a name that hubs
    use: otherwise they may belong to other weights. Raises CheckpointError.
    """
    folder = path if path.is_dir() else path.parent
    found: dict[str, Any] = {}
    if path.is_dir() or path.name in _ON_HUBS:
        for name in ("config.json", "preprocessor_config.json"):
            if (path.is_dir() and name == "config.json") or (folder / name).exists():
                found |= _read_json(folder / name)
    return found | (_read_metadata(path) if path.suffix == ".safetensors" and path.is_file() else {})


def _read_metadata(path: Path) -> dict[str, Any]:
    """Read the metadata that `mimcl export` wrote into the file."""
    try:
        with ascii_path(path) as name, safe_open(name, "pt") as file:
            texts = file.metadata() or {}
        return {name: json.loads(texts[name]) for name in METADATA if name in texts}
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise _unreadable(path, error) from None


def _read_folder(folder: Path) -> dict[str, Tensor]:
    for name in _ON_HUBS:
        if (folder / name).is_file():
            return _read_file(folder / name)
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        raise CheckpointError(f"{folder} has a config.json but no model.safetensors; give a folder with weights")
    shards = _read_json(index).get("weight_map")
    names = sorted(set(shards.values())) if isinstance(shards, dict) and all(map(_is_text, shards.values())) else []
    if not names or any(Path(name).name != name or not (folder / name).is_file() for name in names):
        raise CheckpointError(f"{index} does not name files in {folder}; download the folder again")
    return {name: tensor for file in names for name, tensor in _read_file(folder / file).items()}


def _read_file(path: Path) -> dict[str, Tensor]:
    found: Any
    try:
        if path.suffix == ".safetensors":
            with ascii_path(path) as name:
                found = load_file(name)
        else:
            found = _read_pickle(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise _unreadable(path, error) from None
    for key in _INSIDE:
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
            break
    if not isinstance(found, dict) or not found or not all(map(_is_text, found)):
        raise CheckpointError(f"{path} is not a state dict; give one, at the top level or under 'model'")
    for name, tensor in found.items():
        if not _is_plain(tensor):
            raise CheckpointError(f"{path} is not a file of weights: {_short(name)} is not a plain tensor")
    return {name: tensor.detach() for name, tensor in found.items()}


def _read_pickle(path: Path) -> Any:
    try:
        # torch writes uncompressed archives; a compressed one could fill any memory.
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if sum(record.file_size for record in archive.infolist()) > path.stat().st_size:
                    raise ValueError("it is compressed; torch's files are not")
        # MAE's training checkpoints contain their arguments, a Namespace of plain values.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings(action="ignore"):
            return torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError:  # its own message advises to load the file unsafely
        raise CheckpointError(
            f"{path} cannot be read as weights; it is damaged, or contains more than tensors"
        ) from None
    except Exception as error:  # a damaged pickle can raise anything
        raise _unreadable(path, error) from None


def _is_plain(tensor: object) -> bool:
    """Whether it is a tensor with all its numbers in memory: a hostile view of one number may claim any size."""
    return (
        isinstance(tensor, Tensor)
        and type(tensor) in (Tensor, torch.nn.Parameter)
        and tensor.layout == torch.strided
        and tensor.device.type == "cpu"
        and not tensor.is_quantized
        and tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        if not path.is_file():
            raise OSError("not a regular file")
        with open(path, "rb") as file:
            content = json.loads(file.read(_MAX_JSON))
    except (OSError, ValueError, RecursionError) as error:
        raise _unreadable(path, error) from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is not a model configuration; give a Hugging Face folder or a file of weights")
    return content


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _short(name: str) -> str:
    """Shorten a name from a file for a message."""
    return repr(name if len(name) <= 80 else f"{name[:77]}...")


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    reason = " ".join((str(error) or type(error).__name__).partition("\n")[0].split())
    return CheckpointError(f"{path} cannot be read as weights ({reason[:200]})")
