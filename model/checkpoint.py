"""Checkpoints: a folder a step, written aside and renamed whole; `latest` names the newest and is moved last."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
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


class DamagedError(CheckpointError):
    """A checkpoint is not whole; an earlier one may be."""


@dataclass(frozen=True)
class Checkpoint:
    """What was saved: weights by name, the state needed to go on, and meta.json."""

    path: Path
    tensors: dict[str, Tensor]
    state: dict[str, Any]
    meta: dict[str, Any]


def save(
    folder: Path,
    step: int,
    tensors: dict[str, Tensor],
    state: dict[str, Any],
    meta: dict[str, Any],
    *,
    keep_last: int,
    keep_every_steps: int = 0,
) -> Path:
    """Writes `folder`/STEP and moves `latest` to it; returns its path.

    The newest `keep_last` stay, and for good the first of every stretch of `keep_every_steps` steps but the one that
    begins at 0; later steps go, from which training did not go on. Raises CheckpointError when it was not written; the
    one before stays in force.
    """
    final = folder / f"{step:08d}"
    aside, pointer = folder / f"{final.name}.tmp", folder / "latest.tmp"
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, aside / _PAYLOAD[0])
        torch.save(state, aside / _PAYLOAD[1])
        digests = {name: _sha256(aside / name) for name in _PAYLOAD}
        content = {"format": FORMAT, "step": step, **meta, "sha256": digests}
        content["sha256"] = digests | {"meta.json": _digest_of_meta(content)}
        (aside / "meta.json").write_text(json.dumps(content, indent=1))
        pointer.write_text(final.name + "\n")
        for path in (*aside.iterdir(), aside, pointer):
            _flush(path)
        # From here on nothing needs room.
        _remove(final)  # the same step, saved before and trained again
        os.replace(aside, final)
        os.replace(pointer, folder / "latest")
        _flush(folder)
    except (OSError, RuntimeError, SafetensorError) as error:
        shutil.rmtree(aside, ignore_errors=True)
        with suppress(OSError):
            pointer.unlink()
        raise CheckpointError(f"checkpoint {final} cannot be written ({error}); make room on the disk") from error
    saved = _saved(folder)
    count = saved.index(final) + 1
    for old in (*_superfluous(saved[:count], keep_last, keep_every_steps), *saved[count:]):
        with suppress(OSError):  # tried again after the next
            _remove(old)
    return final


def candidates(folder: Path) -> list[Path]:
    """The checkpoints that are there, best first: the one that `latest` names, then the others from the newest on."""
    try:
        named = (folder / "latest").read_text().strip()
    except (OSError, UnicodeDecodeError):
        named = ""
    return sorted(_saved(folder), key=lambda path: (path.name == named, path.name), reverse=True)


def newest(folder: Path, read: Callable[[Path], Any], on_damage: Callable[[str], None]) -> Any:
    """`read` of the best checkpoint in `folder` that is whole; `on_damage` is told of each that is not, in one line.

    Raises CheckpointError where none is left.
    """
    for path in candidates(folder):
        try:
            return read(path)
        except DamagedError as error:
            on_damage(f"{error}; trying the one before")
    raise CheckpointError(f"no checkpoint in {folder} is whole; remove the folder to start anew")


def resolve(path: Path) -> Path:
    """A checkpoint folder from its own path or from that of its run. Raises CheckpointError where there is none."""
    if (path / "meta.json").exists():
        return path
    if found := candidates(path / "checkpoints"):
        return found[0]
    raise CheckpointError(f"{path} is neither a run with a checkpoint nor a checkpoint; give runs/NAME")


def load(path: Path, with_state: bool = True) -> Checkpoint:
    """Reads and verifies one checkpoint, onto the CPU. Raises DamagedError, or CheckpointError when it is newer.

    Without the state, which is twice the size of the weights, it is empty and not verified.
    """
    meta = read_meta(path)
    try:
        for name in _PAYLOAD if with_state else _PAYLOAD[:1]:
            if _sha256(path / name) != meta["sha256"][name]:
                raise DamagedError(f"checkpoint {path} is damaged: the checksum of {name} differs")
        tensors = load_file(path / _PAYLOAD[0])
        state = torch.load(path / _PAYLOAD[1], map_location="cpu", weights_only=True) if with_state else {}
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, UnpicklingError, SafetensorError) as error:
        raise DamagedError(f"checkpoint {path} cannot be read ({_first_line(error)})") from None
    return Checkpoint(path, tensors, state, meta)


def read_meta(path: Path) -> dict[str, Any]:
    """What a checkpoint says of itself, verified. Raises DamagedError, or CheckpointError when it is newer."""
    try:
        meta = json.loads((path / "meta.json").read_text())
        kind, digest = meta["format"], meta["sha256"].pop("meta.json", None)
        damaged = digest != _digest_of_meta(meta)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"checkpoint {path} cannot be read ({_first_line(error)})") from None
    if kind != FORMAT:
        raise CheckpointError(f"{path} has format {kind!r}, this program reads {FORMAT!r}; upgrade mimcl")
    if damaged:
        raise DamagedError(f"checkpoint {path} is damaged: the checksum of meta.json differs")
    return meta


def clean(folder: Path) -> None:
    """Removes what a writer that was killed left half-written. Only for the process that writes the run."""
    for path in folder.glob("*.tmp"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _saved(folder: Path) -> list[Path]:
    """What looks like a checkpoint, oldest first."""
    return sorted(path for path in folder.glob("*") if path.name.isdigit() and path.is_dir())


def _superfluous(saved: list[Path], keep_last: int, keep_every_steps: int) -> list[Path]:
    kept, stretch = set(saved[-keep_last:]), 0
    for path in saved if keep_every_steps else ():
        if int(path.name) // keep_every_steps > stretch:
            stretch = int(path.name) // keep_every_steps
            kept.add(path)
    return [path for path in saved if path not in kept]


def _remove(path: Path) -> None:
    """Renamed first: a checkpoint is whole or not there, also when this is interrupted."""
    if path.exists():
        doomed = path.with_name(path.name + ".old.tmp")
        shutil.rmtree(doomed, ignore_errors=True)
        os.replace(path, doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def _digest_of_meta(content: dict[str, Any]) -> str:
    """Over all of meta.json but this digest itself."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).partition("\n")[0]


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
