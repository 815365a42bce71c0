"""Read what a checkpoint says about itself; torch is imported only where weights are loaded."""

from __future__ import annotations

from pathlib import Path

from mimcl.cli.config import Config, nested_keys, override
from mimcl.model import checkpoint
from mimcl.model.checkpoint import Checkpoint
from mimcl.model.checkpoint_path import named_checkpoint, resolve
from mimcl.pipeline.data_config import DataConfig


def is_third_party(path: Path) -> bool:
    """Whether it is a file of weights, or a folder of Hugging Face, rather than a run or a checkpoint."""
    return (path / "config.json").exists() or (path.is_file() and not named_checkpoint(path))


def trained_on(path: Path) -> str:
    """Return the shards that an encoder was trained on, for third-party weights the default ones.

    No weights are read. Raises CheckpointError if there is no encoder.
    """
    if is_third_party(path):
        return DataConfig.root
    return checkpoint.read_meta(resolve(path))["config"]["data"]["root"]


def require_weights(path: Path) -> None:
    """Raise CheckpointError unless `path` may have an encoder or a fine-tuned classifier; nothing is loaded."""
    if not any((path / name).exists() for name in ("weights.safetensors", "evaluation")):
        trained_on(path)


def config_of(saved: Checkpoint) -> Config:
    """The configuration that the checkpoint was saved with."""
    return override(Config(), nested_keys(saved.meta["config"]))


def load_weights(path: Path) -> Checkpoint:
    """Load a checkpoint without its training state, unless it is an old one that keeps the number of images there.

    Raises CheckpointError.
    """
    return checkpoint.load(path, with_state="samples" not in checkpoint.read_meta(path))


def samples_of(saved: Checkpoint) -> int:
    """The number of images in the training data."""
    return saved.meta["samples"] if "samples" in saved.meta else len(saved.state["draw_counts"])
