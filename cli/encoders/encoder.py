"""An encoder to judge or to take elsewhere: from a run, one of its checkpoints, or a file of weights by anybody."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from mimcl.cli.config import Config, override
from mimcl.cli.encoders.restore import config_of, load_weights, restore_model, samples_of
from mimcl.cli.run.folder import has_bfloat16
from mimcl.model import checkpoint
from mimcl.model.digest import weights_digest
from mimcl.model.mae import MEAN, STD, MaskedAutoencoderViT
from mimcl.model.normalisation import Normalisation
from mimcl.model.weights import Weights, read_weights


@dataclass(frozen=True)
class Encoder:
    """Weights with the configuration that they fit, and where what is found out about them is written."""

    path: Path  # checkpoint folder, or file of weights
    config: Config
    tensors: dict[str, Tensor]
    home: Path  # the run's folder; of a file of weights, or a checkpoint without its run, see _home
    draw: int  # of the checkpoint; 0 of a file
    has_decoder: bool
    samples: int | None = None  # images that it was trained on; None of a file
    note: str = ""  # for the user: how its pixels are normalised, where that is not plain

    @classmethod
    def load(cls, path: Path) -> Encoder:
        """That of runs/NAME, of runs/NAME/checkpoints/STEP, or of weights in MAE's, timm's or Hugging Face's layout.

        Raises CheckpointError where there is none.
        """
        if path.is_file() or (path / "config.json").exists():
            return cls._of_weights(path)
        path = checkpoint.resolve(path)
        saved = load_weights(path)
        run = path.parent.parent if path.parent.name == "checkpoints" else None
        home = run or _home(path.resolve().name, saved.tensors)
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
            **({"masking.mask_ratio": weights.mask_ratio} if weights.mask_ratio else {}),
        }
        home = _home(path.resolve().stem, weights.tensors)
        return cls(
            path, override(Config(), values), weights.tensors, home, 0, weights.has_decoder, note=_note(path, weights)
        )

    def model(self, trained: bool = True) -> MaskedAutoencoderViT:
        """In evaluation mode, on the CPU; untrained: with the weights that a run draws."""
        return restore_model(self.config, self.tensors if trained else None)


def _home(name: str, tensors: Mapping[str, Tensor]) -> Path:
    """evaluations/NAME-DIGEST: many files have one name, such as model.safetensors."""
    return Path("evaluations") / f"{name}-{weights_digest(tensors)[:8]}"


def _note(path: Path, weights: Weights) -> str:
    theirs = weights.normalisation
    if theirs is None:
        return f"{path} does not tell how pixels are normalised: ImageNet's {Normalisation(MEAN, STD)} are assumed"
    return (
        "" if theirs.is_ours else f"{path} is for pixels with {theirs}: its patch projection was changed to take ours"
    )
