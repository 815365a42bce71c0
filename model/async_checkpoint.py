"""Saving beside training: training stops for the copy to host memory, a thread does the rest."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mimcl.model import checkpoint
from mimcl.model.checkpoint import CheckpointError


class Saver:
    """Writes checkpoints to one folder, one at a time; the only writer there."""

    def __init__(self, folder: Path, *, keep_last: int, keep_every_steps: int, warn: Callable[[str], None]) -> None:
        """`warn` is told in one line, on the caller's thread, when a checkpoint was not written."""
        self._folder, self._warn = folder, warn
        self._keep = {"keep_last": keep_last, "keep_every_steps": keep_every_steps}
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="save")
        self._writing: Future[int] | None = None
        checkpoint.clean(folder)

    def start(
        self,
        step: int,
        tensors: dict[str, Tensor],
        state: dict[str, Any],
        meta: dict[str, Any],
        first: Callable[[], None],
        uncopied: dict[str, Tensor] | None = None,
    ) -> None:
        """Copies what is given and writes it in the background; `first` is called there before.

        `uncopied` belongs to the state as well, on the host; it must not change while `writing`. Left out, with a word,
        while the one before is still being written.
        """
        if self.writing:
            self._warn(f"no checkpoint at step {step}: the one before is still being written")
            return
        self.flush()
        copied = _on_host({"tensors": tensors, "state": state})

        copied["state"] |= uncopied or {}

        def write() -> int:
            first()
            checkpoint.save(self._folder, step, copied["tensors"], copied["state"], meta, **self._keep)
            return step

        self._writing = self._pool.submit(write)

    @property
    def writing(self) -> bool:
        """Whether what was given is still needed as it is."""
        return self._writing is not None and not self._writing.done()

    def finish(self) -> int | None:
        """Waits for what is being written; returns its step. Raises CheckpointError when it failed."""
        writing, self._writing = self._writing, None
        try:
            return writing.result() if writing else None
        except OSError as error:
            what = error.filename or f"what goes with the checkpoints in {self._folder}"
            raise CheckpointError(f"{what} cannot be written ({error.strerror or error}); make room") from error

    def flush(self) -> int | None:
        """As `finish`, but a failure is only told."""
        try:
            return self.finish()
        except CheckpointError as error:
            self._warn(f"{error}; the one before stays in force, and the next is tried when it is due")
            return None

    def close(self) -> None:
        """Ends the thread when it is done; tells a failure that no one asked for."""
        self.flush()
        self._pool.shutdown()


def _on_host(tree: Any) -> Any:
    """The same tree with every tensor copied into host memory; waits for the copies of a GPU once, at the end."""
    copied = _copied(tree)
    if torch.cuda.is_available():
        torch.cuda.current_stream().synchronize()
    return copied


def _copied(tree: Any) -> Any:
    if isinstance(tree, Tensor):
        host = torch.empty_like(tree, device="cpu", pin_memory=tree.is_cuda)
        return host.copy_(tree.detach(), non_blocking=True)
    if isinstance(tree, dict):
        return {key: _copied(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(map(_copied, tree))
    return tree
