"""Checkpoints: a folder a step, written aside and renamed whole; `latest` names the newest and is moved last."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

FORMAT = "mimcl-checkpoint/1"
_PAYLOAD = ("weights.safetensors", "state.pt")


class CheckpointError(Exception):
    """A checkpoint cannot be used; one line that says why and what to do."""


@dataclass(frozen=True)
class Checkpoint:
    """What was saved: weights by name, the state needed to go on, and meta.json."""

    tensors: dict[str, Tensor]
    state: dict[str, Any]
    meta: dict[str, Any]


def save(
    folder: Path, step: int, tensors: dict[str, Tensor], state: dict[str, Any], meta: dict[str, Any], keep_last: int
) -> Path:
    """Writes `folder`/STEP and moves `latest` to it, then removes all but the newest `keep_last`; returns its path."""
    final = folder / f"{step:08d}"
    aside = folder / f"{final.name}.tmp"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, aside / _PAYLOAD[0])
        torch.save(state, aside / _PAYLOAD[1])
        digests = {name: _sha256(aside / name) for name in _PAYLOAD}
        content = {"format": FORMAT, "step": step, **meta, "sha256": digests}
        (aside / "meta.json").write_text(json.dumps(content, indent=1))
        for path in (*aside.iterdir(), aside):
            _flush(path)
    except (OSError, RuntimeError, SafetensorError) as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise CheckpointError(f"{final} cannot be written ({error}); make room, then go on with --resume") from error
    shutil.rmtree(final, ignore_errors=True)  # the same step, saved before and trained again
    os.replace(aside, final)
    pointer = folder / "latest.tmp"
    pointer.write_text(final.name + "\n")
    _flush(pointer)
    os.replace(pointer, folder / "latest")
    _flush(folder)
    for old in _saved(folder)[:-keep_last]:
        shutil.rmtree(old)
    return final


def latest(folder: Path) -> Path | None:
    """The checkpoint that `latest` names; if it is gone, the newest that is there; None where there is none."""
    pointer = folder / "latest"
    if pointer.exists():
        named = folder / pointer.read_text().strip()
        if (named / "meta.json").exists():
            return named
    return max(_saved(folder), default=None)


def resolve(path: Path) -> Path:
    """A checkpoint folder from its own path or from that of its run. Raises CheckpointError where there is none."""
    if (path / "meta.json").exists():
        return path
    if found := latest(path / "checkpoints"):
        return found
    raise CheckpointError(f"{path} is neither a run with a checkpoint nor a checkpoint; give runs/NAME")


def load(path: Path) -> Checkpoint:
    """Reads and verifies one checkpoint, onto the CPU. Raises CheckpointError when it is damaged or newer."""
    try:
        meta = json.loads((path / "meta.json").read_text())
        if meta["format"] != FORMAT:
            raise CheckpointError(f"{path} has format {meta['format']!r}, this program reads {FORMAT!r}; upgrade mimcl")
        for name in _PAYLOAD:
            if _sha256(path / name) != meta["sha256"][name]:
                raise CheckpointError(f"{path / name} is damaged: its checksum differs; delete {path} to use another")
        tensors = load_file(path / _PAYLOAD[0])
        state = torch.load(path / _PAYLOAD[1], map_location="cpu", weights_only=True)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, UnpicklingError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); delete it to use another") from None
    return Checkpoint(tensors, state, meta)


def _saved(folder: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    return sorted(path.parent for path in folder.glob("*/meta.json") if path.parent.name.isdigit())


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
