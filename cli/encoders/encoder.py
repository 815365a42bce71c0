"""Load an encoder from a run, one of its checkpoints, or a file of third-party weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor

from mimcl.cli.config import Config, override
from mimcl.cli.encoders.restore import restore_model
from mimcl.cli.encoders.saved import config_of, is_third_party, load_weights, samples_of
from mimcl.cli.run.resolve import has_bfloat16
from mimcl.model.autoencoder import MaskedAutoencoder
from mimcl.model.checkpoint_path import resolve, run_of
from mimcl.model.digest import weights_digest
from mimcl.model.mae import MEAN, STD
from mimcl.model.normalisation import Normalisation
from mimcl.model.weights import Weights, read_weights


@dataclass(frozen=True)
class Encoder:
    """Weights, the configuration they fit, and the folder that results about them are written to."""

    path: Path  # checkpoint folder, or file of weights
    config: Config
    tensors: dict[str, Tensor]
    home: Path  # the run's folder; of a file of weights, or of a checkpoint outside a run, see _home
    draw: int  # of the checkpoint; 0 for a file of weights
    has_decoder: bool
    samples: int | None = None  # images in the training data; None for a file of weights
    note: str = ""  # for the user: which pixel normalisation was assumed or converted

    @classmethod
    def load(cls, path: Path) -> Encoder:
        """Load a run, one of its checkpoints, or weights in the layout of MAE, timm or Hugging Face.

        Raises CheckpointError if `path` has no weights.
        """
        if is_third_party(path):
            return cls._from_weights(path)
        path = resolve(path)
        saved = load_weights(path)
        home = run_of(path) or _home(path.resolve().name, saved.tensors)
        draw, samples = saved.meta["position"], samples_of(saved)
        return cls(path, config_of(saved), saved.tensors, home, draw, has_decoder=True, samples=samples)

    @classmethod
    def _from_weights(cls, path: Path) -> Encoder:
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

    @property
    def precision(self) -> Literal["bfloat16", "float32"]:
        """The precision that the model computes in."""
        return "bfloat16" if self.config.trainer.precision == "bfloat16" else "float32"

    def model(self, trained: bool = True) -> MaskedAutoencoder:
        """Build the model, in evaluation mode, on the CPU; untrained: with the run's initial random weights."""
        return restore_model(self.config, self.tensors if trained else None)


def _home(name: str, tensors: Mapping[str, Tensor]) -> Path:
    """evaluations/NAME-DIGEST: many files share a name, such as model.safetensors."""
    return Path("evaluations") / f"{name}-{weights_digest(tensors)[:8]}"


def _note(path: Path, weights: Weights) -> str:
    normalisation = weights.normalisation
    if normalisation is None:
        return f"{path} does not say how pixels are normalised; assuming ImageNet's {Normalisation(MEAN, STD)}"
    if normalisation.is_ours:
        return ""
    return f"{path} expects pixels normalised with {normalisation}; its patch projection was converted to ImageNet's"
