"""Find checkpoints, and the one or the run that a path names.

Needs no torch, so that a wrong path is noticed at once.
"""

from __future__ import annotations

import os
from pathlib import Path

FILES = ("weights.safetensors", "state.pt", "meta.json")  # of a checkpoint
_CHECKPOINTS = "checkpoints"  # folder of a run


class CheckpointError(Exception):
    """A checkpoint cannot be written or used; the message is one line that says why and what to do."""


def candidates(folder: Path) -> list[Path]:
    """Return the checkpoints in order of preference: the one that `latest` names, then the others, newest first.

    Raises CheckpointError if the folder cannot be listed, since a run must not start anew then.
    """
    try:
        named = (folder / "latest").read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError):
        named = ""
    try:
        saved = saved_checkpoints(folder)
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be listed: {error.strerror or error}") from None
    return sorted(saved, key=lambda path: (path.name == named, path.name), reverse=True)


def named_checkpoint(path: Path) -> Path | None:
    """Return the folder of the one checkpoint that `path` names, None if it names none, or a run.

    It is named by its folder, also without the zeros of its step, by a file in it, and by RUN/checkpoints/latest.
    """
    if (path / "meta.json").exists():
        return path
    if path.name in FILES and (path.parent / "meta.json").exists():
        return path.parent
    if path.name == "latest" and not path.is_dir():
        return next(iter(candidates(path.parent)), None)
    if path.name.isdecimal() and ((padded := path.with_name(f"{int(path.name):08d}")) / "meta.json").exists():
        return padded
    return None


def named_run(path: Path) -> Path:
    """Return the run that `path` names, by its folder, its folder of checkpoints or one of these; else `path`."""
    checkpoint = named_checkpoint(path)
    if checkpoint:
        return run_of(checkpoint) or path
    if Path(os.path.abspath(path)).name == _CHECKPOINTS and candidates(path):
        return path.parent if path.name == _CHECKPOINTS else path / ".."
    return path


def run_of(checkpoint: Path) -> Path | None:
    """Return the folder of a checkpoint's run, None for a checkpoint outside of a run."""
    whole = Path(os.path.abspath(checkpoint))
    if whole.parent.name != _CHECKPOINTS:
        return None
    return checkpoint.parent.parent if checkpoint.parent.name == _CHECKPOINTS else whole.parent.parent


def resolve(path: Path) -> Path:
    """Return the checkpoint that `path` names, the best one of a run. Raises CheckpointError if there is none."""
    if found := named_checkpoint(path) or next(iter(candidates(named_run(path) / _CHECKPOINTS)), None):
        return found
    what = "is neither a checkpoint nor a run with one" if path.exists() else "does not exist"
    raise CheckpointError(f"{path} {what}; give runs/NAME or one of its checkpoints")


def saved_checkpoints(folder: Path) -> list[Path]:
    """Return the folders named like checkpoints, oldest first."""
    return [path for path in listed(folder) if path.name.isdigit() and path.is_dir()]


def listed(folder: Path) -> list[Path]:
    """Return what is in a folder, sorted; nothing if there is none. Raises OSError if it cannot be listed."""
    try:
        return sorted(folder.iterdir())  # Path.glob finds nothing in a folder that may not be read
    except (FileNotFoundError, NotADirectoryError):
        return []
