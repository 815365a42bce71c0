"""An encoder to judge or to take elsewhere: from a run, one of its checkpoints, or a file of weights by anybody."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from mimcl.cli.config import Config, override
from mimcl.cli.restore import config_of, restore_model, samples_of
from mimcl.cli.run import has_bfloat16
from mimcl.model import checkpoint
from mimcl.model.mae import MaskedAutoencoderViT
from mimcl.model.weights import read_weights


@dataclass(frozen=True)
class Encoder:
    """Weights with the configuration that they fit, and where what is found out about them is written."""

    path: Path  # checkpoint folder, or file of weights
    config: Config
    tensors: dict[str, Tensor]
    home: Path  # the run's folder; of a file of weights, or a checkpoint without its run, evaluations/NAME
    draw: int  # of the checkpoint; 0 of a file
    has_decoder: bool
    samples: int | None = None  # images that it was trained on; None of a file

    @classmethod
    def load(cls, path: Path) -> Encoder:
        """That of runs/NAME, of runs/NAME/checkpoints/STEP, or of weights in MAE's, timm's or Hugging Face's layout.

        Raises CheckpointError where there is none.
        """
        if path.is_file() or (path / "config.json").exists():
            return cls._of_weights(path)
        path = checkpoint.resolve(path)
        saved = checkpoint.load(path)
        run = path.parent.parent if path.parent.name == "checkpoints" else None
        home = run or Path("evaluations") / path.name
        draw, samples = saved.meta["position"], samples_of(saved)
        return cls(path, config_of(saved), saved.tensors, home, draw, has_decoder=True, samples=samples)

    @classmethod
    def _of_weights(cls, path: Path) -> Encoder:
        weights = read_weights(path)
        values = {
            "recipe": path.stem,
            "data.image_size": weights.image_size,
            "trainer.precision": "bfloat16" if has_bfloat16() else "float32",
            **{f"model.{name}": value for name, value in vars(weights.config).items()},
        }
        home = Path("evaluations") / path.stem
        return cls(path, override(Config(), values), weights.tensors, home, 0, weights.has_decoder)

    def model(self, trained: bool = True) -> MaskedAutoencoderViT:
        """In evaluation mode, on the CPU; untrained: with the weights that a run draws."""
        return restore_model(self.config, self.tensors if trained else None)
