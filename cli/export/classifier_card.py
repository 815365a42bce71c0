"""README.md of a classifier's export: classes, fine-tuning, accuracy, and how to classify an image with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mimcl.cli.encoders.finetuned import FineTuned
from mimcl.cli.evaluate.results_file import format_settings
from mimcl.cli.export.model_card import LIBRARIES, from_hub, plain, table
from mimcl.model.config import SIZES
from mimcl.model.mae import MEAN, STD
from mimcl.pipeline.augment import EVALUATION_SIDE

_SHOWN_CLASSES = 20
_TIMM_NOTE = """
`timm.create_model("local-dir:FOLDER", pretrained=True)` with timm 1.0.16 or later, or a hub repository of this folder,
also knows crop, normalisation and names of the classes (`model.pretrained_cfg`). timm's transform resizes before it
crops, so probabilities may differ slightly from the above.
"""
_HF_NOTE = """
The architecture is BEiT's, because Hugging Face's ViTForImageClassification classifies the CLS token, and this model
the mean of the patch tokens. `pipeline("image-classification", model=FOLDER)` works as well; its image processor
resizes before it crops, so probabilities may differ slightly from the above.
"""
_NOTES = {"timm": _TIMM_NOTE, "hf": _HF_NOTE}


def classifier_card(tuned: FineTuned, target: str, example: str, check: str, hub_calls: Sequence[str] = ()) -> str:
    """Return Markdown with the front matter that model hubs read.

    `example` are Python lines that classify `images`; `check` describes the maximum difference; `hub_calls` are Python
    expressions that load the model from a hub.
    """
    weights, size = tuned.weights, tuned.weights.image_size
    width, depth, heads = SIZES[weights.config.name]
    return f"""---
library_name: {LIBRARIES[target]}
pipeline_tag: image-classification
tags:
- image-classification
- vision-transformer
- mimcl
# license: choose one before you publish these weights
---

# {classifier_name(tuned)}

An image classifier of {len(weights.classes):,} classes: the encoder of a masked autoencoder, fine-tuned.
{weights.config.name}: {width} wide, {depth} blocks deep, {heads} heads, patches of {weights.config.patch_size} pixels,
images of {size} x {size} pixels. The mean of the patch tokens is normalised and classified by a linear layer. Exported
by mimcl.

Classes, in the order of the logits: {_classes(weights.classes)}.

## Fine-tuning

{_settings(tuned.settings)}

## Evaluation

{_evaluation(tuned)}

## Use

Crop the centre square whose side is {EVALUATION_SIDE:g} of the shorter image side, resize it to {size} x {size} pixels
(bicubic, antialiased) and normalise it, as `mimcl predict` does. In this folder, with an image `image.jpg`:

```python
import numpy as np
import torch
from PIL import Image

image = Image.open("image.jpg").convert("RGB")
side = max(1, round({EVALUATION_SIDE:g} * min(image.size)))
left, top = (image.width - side) // 2, (image.height - side) // 2
square = image.crop((left, top, left + side, top + side)).resize(({size}, {size}), Image.Resampling.BICUBIC)
mean, std = torch.tensor({MEAN}).view(3, 1, 1), torch.tensor({STD}).view(3, 1, 1)
images = (torch.from_numpy(np.array(square)).permute(2, 0, 1)[None] / 255 - mean) / std

{example}
```
{from_hub(hub_calls)}{_NOTES.get(target, "")}
## Check

The maximum absolute difference between the logits of the model loaded from these files and mimcl's own, on random
images, is {check}.
"""


def classifier_name(tuned: FineTuned) -> str:
    """Return the name of the run that was fine-tuned, or of the exported file or folder."""
    path = tuned.path.resolve()
    return plain(path.parents[2].name if tuned.settings else path.stem)


def _classes(classes: tuple[str, ...]) -> str:
    shown = ", ".join(plain(name) for name in classes[:_SHOWN_CLASSES])
    more = len(classes) - _SHOWN_CLASSES
    return f"{shown} and {more:,} others" if more > 0 else shown


def _settings(settings: Mapping[str, Any]) -> str:
    if not settings:
        return "Converted from an export, which does not say how it was fine-tuned."
    return table(("", ""), ((name, format_settings({"": value}).strip()) for name, value in settings.items()))


def _evaluation(tuned: FineTuned) -> str:
    if not tuned.accuracies:
        return "The accuracy of these weights is not known."
    data = plain(Path(tuned.data).name)
    names = {"top1": "top-1", "top5": "top-5"}
    values = ", ".join(f"{names[name]} {100 * tuned.accuracies[name]:.1f} %" for name in names)
    return (
        f"Accuracy of these weights, those of the last step of fine-tuning on {tuned.train:,} train images, on the "
        f"{tuned.val:,} val images of {data}: {values}."
    )
