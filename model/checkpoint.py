"""Checkpoints: one folder per step, written under a temporary name and renamed; `latest` names the newest.

Torch is imported only where tensors are read or written: finding a checkpoint and reading its metadata need none.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any, TypeVar

from safetensors import SafetensorError

from mimcl.model.ascii_path import ascii_path
from mimcl.model.checkpoint_path import FILES, CheckpointError, candidates, listed, saved_checkpoints

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
FORMAT = "mimcl-checkpoint/1"
_PAYLOAD = FILES[:2]
# Errors of the process or of its rights: such a file is not damaged, and no room on the disk is missing.
_NOT_OF_THE_DISK = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EACCES, errno.EPERM)


class DamagedError(CheckpointError):
    """A checkpoint is damaged; an earlier one may be intact."""


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint: weights by name, the state needed to resume, and the content of meta.json."""

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
    """Write `folder`/STEP, point `latest` to it, and return its path.

    The newest `keep_last` checkpoints are kept, and permanently the first one of each interval of `keep_every_steps`
    steps except the interval from 0. Checkpoints of later steps are deleted: training resumed before them. Raises
    CheckpointError when the checkpoint was not written; the previous one is then kept.
    """
    import torch
    from safetensors.torch import save_file

    final = folder / f"{step:08d}"
    aside, pointer = folder / f"{final.name}.tmp", folder / "latest.tmp"
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, aside / _PAYLOAD[0])
        torch.save(state, aside / _PAYLOAD[1])
        digests = {name: _sha256(aside / name) for name in _PAYLOAD}
        content = {"format": FORMAT, "step": step, **meta, "sha256": digests}
        content["sha256"] = digests | {"meta.json": _meta_digest(content)}
        (aside / "meta.json").write_text(json.dumps(content, indent=1), "utf-8")
        pointer.write_text(final.name + "\n", "utf-8")
        for path in (*aside.iterdir(), aside, pointer):
            _flush(path)
        # From here on no disk space is needed.
        _remove(final)  # the same step may have been saved before a resume from an earlier one
        os.replace(aside, final)
        os.replace(pointer, folder / "latest")
        _flush(folder)
    except (OSError, RuntimeError, SafetensorError) as error:
        shutil.rmtree(aside, ignore_errors=True)
        with suppress(OSError):
            pointer.unlink()
        raise CheckpointError(f"checkpoint {final} cannot be written ({error}){room_advice(error)}") from error
    saved = saved_checkpoints(folder)
    count = saved.index(final) + 1
    for old in (*_to_delete(saved[:count], keep_last, keep_every_steps), *saved[count:]):
        with suppress(OSError):  # retried after the next save
            _remove(old)
    return final


def newest(folder: Path, read: Callable[[Path], T], on_damage: Callable[[str], None]) -> T:
    """Read the best intact checkpoint in `folder`; `on_damage` is called with one line for each damaged one.

    Raises CheckpointError when none is intact.
    """
    for path in candidates(folder):
        try:
            return read(path)
        except DamagedError as error:
            on_damage(f"{error}; trying the previous one")
    raise CheckpointError(f"no checkpoint in {folder} is intact; remove the folder to start over")


def load(path: Path, with_state: bool = True) -> Checkpoint:
    """Read and verify one checkpoint, onto the CPU.

    Raises DamagedError, or CheckpointError for a newer format or if the process cannot open its files.

    With `with_state` false, `state` is empty and its file, twice the size of the weights, is neither read nor verified.
    """
    import torch
    from safetensors.torch import load_file

    meta = read_meta(path)
    try:
        for name in _PAYLOAD if with_state else _PAYLOAD[:1]:
            if _sha256(path / name) != meta["sha256"][name]:
                raise DamagedError(f"checkpoint {path} is damaged: the checksum of {name} differs")
        with ascii_path(path / _PAYLOAD[0]) as weights:
            tensors = load_file(weights)
        state = torch.load(path / _PAYLOAD[1], map_location="cpu", weights_only=True) if with_state else {}
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, UnpicklingError, SafetensorError) as error:
        raise _unreadable(path, error) from None
    return Checkpoint(path, tensors, state, meta)


def read_meta(path: Path) -> dict[str, Any]:
    """Read and verify meta.json. Raises DamagedError or CheckpointError like `load`."""
    try:
        meta = json.loads((path / "meta.json").read_bytes())
        kind, digest = meta["format"], meta["sha256"].pop("meta.json", None)
        damaged = digest != _meta_digest(meta)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _unreadable(path, error) from None
    if kind != FORMAT:
        raise CheckpointError(f"{path} has format {kind!r}, but this version reads {FORMAT!r}; upgrade mimcl")
    if damaged:
        raise DamagedError(f"checkpoint {path} is damaged: the checksum of meta.json differs")
    return meta


def room_advice(error: Exception) -> str:
    """Return what to do about an error in writing, as the end of a message; empty where room would not help."""
    return "" if _is_of_process(error) else "; make room on the disk"


def clean(folder: Path) -> None:
    """Remove incomplete files of a writer that was killed. Only for the process that writes the run."""
    for path in (path for path in listed(folder) if path.suffix == ".tmp"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _to_delete(saved: list[Path], keep_last: int, keep_every_steps: int) -> list[Path]:
    kept, interval = set(saved[-keep_last:]), 0
    for path in saved if keep_every_steps else ():
        if int(path.name) // keep_every_steps > interval:
            interval = int(path.name) // keep_every_steps
            kept.add(path)
    return [path for path in saved if path not in kept]


def _remove(path: Path) -> None:
    """Rename, then delete, so that an interruption leaves no incomplete checkpoint."""
    if path.exists():
        doomed = path.with_name(path.name + ".old.tmp")
        shutil.rmtree(doomed, ignore_errors=True)
        os.replace(path, doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def _meta_digest(content: dict[str, Any]) -> str:
    """Return the SHA-256 of meta.json without this digest itself."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _is_of_process(error: Exception) -> bool:
    return any(os.strerror(number) in str(error) for number in _NOT_OF_THE_DISK)  # libraries keep only the words


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    kind = CheckpointError if _is_of_process(error) else DamagedError
    return kind(f"checkpoint {path} cannot be read ({_first_line(error)})")


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
