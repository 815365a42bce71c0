"""What `mimcl export` writes and compares: an encoder or a classifier, in one format."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mimcl.cli.encoders.encoder import Encoder
from mimcl.cli.encoders.finetuned import WEIGHTS, FineTuned, has_finished_finetuning, is_finetuning
from mimcl.cli.export import part
from mimcl.cli.export.classifier_card import classifier_card, classifier_name
from mimcl.cli.export.classifier_parts import part_of_classifier, samples_of_classifier
from mimcl.cli.export.encoder_parts import has_vit_mae, parts_of, samples_of
from mimcl.cli.export.model_card import model_card
from mimcl.cli.export.part import Part


@dataclass(frozen=True)
class ExportJob:
    """Parts to write, samples to compare them by, the model card, and notes."""

    name: str  # of the run, or of the file or folder of weights
    parts: list[Part[Any]]
    samples: list[Any]
    card: Callable[[str, Sequence[str]], str]  # what was compared, calls that load the parts from a hub -> Markdown
    notes: tuple[str, ...] = ()  # for the user

    def differences(self, folder: Path) -> list[list[float]]:
        """Return, for each part, the maximum difference between the model loaded from `folder` and ours, by sample."""
        return [part.differences(each, folder, self.samples) for each in self.parts]


def export_job(path: Path, target: str, classifier: bool) -> ExportJob:
    """Load what is at `path`: the classifier, if asked for or if it is the folder of a fine-tuning, else the encoder.

    Raises CheckpointError, ConfigError.
    """
    if classifier or is_finetuning(path) or (path.name == WEIGHTS and is_finetuning(path.parent)):
        tuned = FineTuned.load(path)
        only = part_of_classifier(tuned, target)
        samples = samples_of_classifier(tuned)
        return ExportJob(classifier_name(tuned), [only], samples, partial(classifier_card, tuned, target, only.example))
    encoder = Encoder.load(path)
    parts = parts_of(encoder, target)
    notes = []
    if target == "hf" and not has_vit_mae(encoder):
        notes.append(f"vit_mae skipped: {path} has {'a cross-attention' if encoder.has_decoder else 'no'} decoder")
    if has_finished_finetuning(encoder.home):
        notes.append("this is the encoder; add --classifier for the classifier that was fine-tuned from it")
    card = partial(model_card, encoder, target, [each.example for each in parts])
    return ExportJob(encoder.home.resolve().name, list(parts), list(samples_of(encoder)), card, tuple(notes))
