"""Payloads that create a file if anything runs them, and commands run in this process on hostile files."""

from __future__ import annotations

import io
import pickle
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from mimcl.cli.main import main


class Bomb:
    """Creates the file `marker` when unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return (open, (str(self.marker), "w"))


def pickled(bomb: Bomb) -> bytes:
    return pickle.dumps(bomb, protocol=2)


def torch_saved(bomb: Bomb) -> bytes:
    file = io.BytesIO()
    torch.save({"position": bomb}, file)
    return file.getvalue()


def object_array(bomb: Bomb) -> bytes:
    file = io.BytesIO()
    array = np.empty((1, 1), object)
    array[0, 0] = bomb
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


PAYLOADS: dict[str, Callable[[Bomb], bytes]] = {
    "pickle": pickled,
    "torch": torch_saved,
    "npy": object_array,
    "yaml": lambda bomb: f"data: !!python/object/apply:os.system ['touch {bomb.marker}']\n".encode(),
}


def refused(capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> str:
    """Run a command that must fail with code 1 or 2 and a one-line error; return what it printed.

    A damaged checkpoint adds a line before the error, because the previous checkpoint is tried.
    """
    monkeypatch.setattr(sys, "argv", ["mimcl", *map(str, arguments)])
    capfd.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main()
    complaint = capfd.readouterr().err
    assert stopped.value.code in (1, 2), complaint
    lines = complaint.splitlines()
    assert 1 <= len(lines) <= (2 if "; trying the" in lines[0] else 1), complaint
    assert all(line.startswith("mimcl: ") for line in lines)
    assert len(complaint) < 1500
    return complaint
