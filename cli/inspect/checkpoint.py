"""Describe a checkpoint."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mimcl.cli.console import format_bytes
from mimcl.cli.encoders.saved import config_of, samples_of
from mimcl.model import checkpoint
from mimcl.pipeline.files import DataError


@dataclass(frozen=True)
class CheckpointDescription:
    """A checkpoint whose files all match their checksums."""

    path: Path
    recipe: str
    model: str
    masking: str
    step: int
    draw: int
    epoch: float
    parameters: int  # of the model
    masker_parameters: int
    bytes: int
    fingerprints: dict[str, str | None]
    window: int
    digest: str  # of the sample ids of the window

    def lines(self) -> list[tuple[str, str]]:
        masker = f", plus {self.masker_parameters:,} of the masker" if self.masker_parameters else ""
        return [
            ("checkpoint", str(self.path)),
            ("recipe", f"{self.recipe}, {self.model}, masking {self.masking}"),
            ("position", f"step {self.step:,}, draw {self.draw:,}, epoch {self.epoch:,.2f}"),
            ("parameters", f"{self.parameters:,}{masker}"),
            ("on disk", f"{format_bytes(self.bytes)}; checksums match"),
            *((f"{name} fingerprint", text or "none") for name, text in self.fingerprints.items()),
            ("window", f"{self.window:,}, digest {self.digest}"),
        ]


def describe_checkpoint(path: Path) -> CheckpointDescription:
    """Read and verify a whole checkpoint. Raises CheckpointError."""
    saved = checkpoint.load(path)
    config, sizes = config_of(saved), {name: tensor.numel() for name, tensor in saved.tensors.items()}
    of_masker = sum(count for name, count in sizes.items() if name.startswith("masker."))
    return CheckpointDescription(
        path=path,
        recipe=config.recipe,
        model=f"{config.model.name}/{config.model.patch_size} at {config.data.image_size} px",
        masking=f"{config.masking.name} {config.masking.mask_ratio:g}",
        step=saved.meta["step"],
        draw=saved.meta["position"],
        epoch=saved.meta["position"] / samples_of(saved),
        parameters=sum(sizes.values()) - of_masker,
        masker_parameters=of_masker,
        bytes=bytes_in_folder(path),
        fingerprints=saved.meta["fingerprints"],
        window=saved.meta["window"]["number"],
        digest=saved.meta["window"]["digest"],
    )


def bytes_in_folder(folder: Path) -> int:
    """Sum the sizes of all files in a folder and below, without following links; files that vanish count as 0.

    Raises DataError if a folder cannot be listed.
    """
    found = 0
    for parent, _, names in os.walk(folder, onerror=_unlistable):
        for name in names:
            with suppress(FileNotFoundError):
                status = os.lstat(os.path.join(parent, name))
                found += status.st_size if stat.S_ISREG(status.st_mode) else 0
    return found


def _unlistable(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise DataError(f"{error.filename} cannot be listed: {error.strerror}") from None
