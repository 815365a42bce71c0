"""A checkpoint, described."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mimcl.cli.encoders.restore import config_of, samples_of
from mimcl.cli.inspect.sizes import bytes_below, size
from mimcl.model import checkpoint


@dataclass(frozen=True)
class CheckpointDescription:
    """One whole checkpoint: every byte has been compared with its checksums."""

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
    digest: str  # of the window's sample ids

    def lines(self) -> list[tuple[str, str]]:
        masker = f", and {self.masker_parameters:,} of the masker" if self.masker_parameters else ""
        return [
            ("checkpoint", str(self.path)),
            ("recipe", f"{self.recipe}, {self.model}, masking {self.masking}"),
            ("position", f"step {self.step:,}, draw {self.draw:,}, epoch {self.epoch:,.2f}"),
            ("parameters", f"{self.parameters:,}{masker}"),
            ("on disk", f"{size(self.bytes)}; whole, by its checksums"),
            *((f"{name} fingerprint", text or "none") for name, text in self.fingerprints.items()),
            ("window", f"{self.window:,}, digest {self.digest}"),
        ]


def describe_checkpoint(path: Path) -> CheckpointDescription:
    """Reads and verifies all of it. Raises CheckpointError."""
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
        bytes=bytes_below(path),
        fingerprints=saved.meta["fingerprints"],
        window=saved.meta["window"]["number"],
        digest=saved.meta["window"]["digest"],
    )
