"""Save checkpoints in the background: training waits for the copy to host memory, a thread writes the files."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mimcl.model import checkpoint
from mimcl.model.checkpoint import CheckpointError, room_advice


class AsyncCheckpointer:
    """Writes checkpoints to one folder, one at a time. It must be the only writer there."""

    def __init__(self, folder: Path, *, keep_last: int, keep_every_steps: int, warn: Callable[[str], None]) -> None:
        """`warn` is called with one line, on the caller's thread, when a checkpoint was not written."""
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
        write_first: Callable[[], None],
        uncopied: dict[str, Tensor] | None = None,
    ) -> None:
        """Copy the arguments and write them in the background, after calling `write_first` there.

        `uncopied` tensors, on the host, are added to the state; they must not change while `writing`. If the previous
        checkpoint is still being written, this one is skipped with a warning.
        """
        if self.writing:
            self._warn(f"no checkpoint at step {step}: the previous one is still being written")
            return
        self.flush()
        copied = _copy_to_host({"tensors": tensors, "state": state})
        copied["state"] |= uncopied or {}

        def write() -> int:
            write_first()
            checkpoint.save(self._folder, step, copied["tensors"], copied["state"], meta, **self._keep)
            return step

        self._writing = self._pool.submit(write)

    @property
    def writing(self) -> bool:
        """Whether a checkpoint is being written, so that its `uncopied` tensors must not change."""
        return self._writing is not None and not self._writing.done()

    def finish(self) -> int | None:
        """Wait for the checkpoint being written and return its step. Raises CheckpointError when it failed."""
        writing, self._writing = self._writing, None
        try:
            return writing.result() if writing else None
        except OSError as error:
            what = error.filename or f"files that belong to the checkpoints in {self._folder}"
            raise CheckpointError(
                f"{what} cannot be written ({error.strerror or error}){room_advice(error)}"
            ) from error

    def flush(self) -> int | None:
        """Like `finish`, but a failure is only a warning."""
        try:
            return self.finish()
        except CheckpointError as error:
            self._warn(f"{error}; keeping the previous checkpoint, the next one is saved when due")
            return None

    def close(self) -> None:
        """Wait for the thread and end it; a failure not yet reported is a warning."""
        self.flush()
        self._pool.shutdown()


def _copy_to_host(tree: Any) -> Any:
    """Copy every tensor of the tree into host memory; synchronizes with the GPU once, at the end."""
    copied = _copy(tree)
    if torch.cuda.is_available():
        torch.cuda.current_stream().synchronize()
    return copied


def _copy(tree: Any) -> Any:
    if isinstance(tree, Tensor):
        host = torch.empty_like(tree, device="cpu", pin_memory=tree.is_cuda)
        return host.copy_(tree.detach(), non_blocking=True)
    if isinstance(tree, dict):
        return {key: _copy(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(map(_copy, tree))
    return tree
