"""README.md of an export: training data and settings, evaluation results, and how to load the weights."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mimcl.cli.encoders.encoder import Encoder
from mimcl.cli.evaluate.results_file import format_results, format_settings, latest_results
from mimcl.cli.export.encoder_parts import has_vit_mae
from mimcl.model.config import SIZES
from mimcl.model.jsonl import read_lines
from mimcl.model.mae import MEAN, STD
from mimcl.pipeline.augment import EVALUATION_SIDE
from mimcl.pipeline.remote.urls import shown

LIBRARIES = {"timm": "timm", "hf": "transformers", "safetensors": "mimcl"}
_TIMM_NOTE = """
`timm.data.resolve_model_data_config` returns these constants only for a model created from this folder,
`timm.create_model("local-dir:FOLDER", pretrained=True)` with timm 1.0.16 or later, or from a hub repository; for the
call above it returns those of other weights.
"""


def model_card(
    encoder: Encoder, target: str, examples: Iterable[str], check: str, hub_calls: Sequence[str] = ()
) -> str:
    """Return Markdown with the front matter that model hubs read.

    `examples` are Python lines that load the weights; `check` describes the maximum difference; `hub_calls` are Python
    expressions that load them from a hub.
    """
    config = encoder.config
    name = plain(encoder.home.resolve().name)
    size = config.data.image_size
    width, depth, heads = SIZES[config.model.name]
    decoder = ""
    if (target == "safetensors" and encoder.has_decoder) or (target == "hf" and has_vit_mae(encoder)):
        decoder = f" Its decoder is {config.model.decoder_width} wide and {config.model.decoder_depth} blocks deep"
        decoder += ", with cross-attention." if config.model.decoder == "cross" else "."
    code = "\n".join(f"```python\n{example}\n```\n" for example in examples)
    return f"""---
library_name: {LIBRARIES[target]}
pipeline_tag: image-feature-extraction
tags:
- masked-autoencoder
- self-supervised-learning
- vision-transformer
- mimcl
# license: choose one before you publish these weights
---

# {name}

The encoder of a masked autoencoder, {config.model.name}: {width} wide, {depth} blocks deep, {heads} heads, patches of
{config.model.patch_size} pixels, images of {size} x {size} pixels.{decoder} Exported by mimcl.

## Training

{_training(encoder)}

## Evaluation

{_evaluation(encoder)}

## Use

Crop the centre square whose side is {EVALUATION_SIDE:g} of the shorter image side, and resize it to {size} x {size}
pixels (bicubic, antialiased). Normalise red, green and blue, from 0 to 1, with mean {MEAN} and
deviation {STD}: `images` is float32, (B, 3, {size}, {size}). In this folder:

{code}{from_hub(hub_calls)}{_TIMM_NOTE if target == "timm" else ""}
## Check

The maximum absolute difference between the model loaded from these files and mimcl's own, on random images, is
{check}.
"""


def from_hub(calls: Sequence[str]) -> str:
    """Return the paragraph that says how to load the weights without a download by hand; empty without calls."""
    if not calls:
        return ""
    lines = "\n".join(calls)
    return f"\nFrom the hub, they are loaded by:\n\n```python\n{lines}\n```\n"


def _training(encoder: Encoder) -> str:
    config = encoder.config
    if encoder.samples is None:
        return f"Converted from {plain(encoder.path.name)}, which does not say what it was trained on."
    curriculum, masking = config.curriculum, config.masking
    order = "none: uniform draws"
    if curriculum.name != "none":
        order = f"{curriculum.name}, {curriculum.temp_schedule}, for {curriculum.share:g} of the run"
    batch = config.data.batch_size
    rows = {
        "recipe": config.recipe,
        "data": f"{Path(shown(config.data.root)).resolve().name}, {encoder.samples:,} images",
        "trained for": f"{encoder.draw / encoder.samples:.4g} of {config.trainer.epochs:g} epochs: {encoder.draw:,} "
        f"draws in {encoder.draw // batch:,} steps of {batch:,}",
        "curriculum": order,
        "masking": f"{masking.name}, {masking.mask_ratio:g} of the patches",
        "target": "pixels, normalised in each patch" if config.model.norm_pix_loss else "pixels",
        "optimizer": f"AdamW, base learning rate {config.optim.base_lr:g}, weight decay {config.optim.weight_decay:g}, "
        f"{config.optim.warmup_epochs:g} epochs of warm-up",
        "precision": config.trainer.precision,
        "initial weights": Path(config.init).name if config.init else "random",
        "seed": config.seed,
    }
    return table(("", ""), rows.items())


def _evaluation(encoder: Encoder) -> str:
    rows = []
    for line in _evaluations(encoder):
        settings, shares = format_settings(line["settings"]), format_results(line["values"])
        rows.append((line["evaluation"], Path(line["data"]).name, settings, shares))
    if not rows:
        return "These weights have not been evaluated."
    return table(("", "data", "settings", "result"), rows)


def _evaluations(encoder: Encoder) -> list[Mapping[str, Any]]:
    """Return the lines about these weights in metrics.jsonl."""
    try:
        lines = read_lines(encoder.home / "metrics.jsonl")
    except OSError:
        return []
    return [line for line in latest_results(lines) if line.get("checkpoint") == encoder.path.name]


def table(head: tuple[str, ...], rows: Iterable[Iterable[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(plain(str(cell)) for cell in line) + " |" for line in lines)


def plain(text: str) -> str:
    """Make untrusted text safe for a table cell or heading: one line, without Markdown and HTML syntax."""
    return re.sub(r"[|<>`\[\]]", "-", " ".join(text.split()))
