"""Run folders as `mimcl train` writes them, of any length and with any numbers, without training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from mimcl.cli.config import Config, override, write_yaml
from mimcl.cli.report.read import read_run
from mimcl.cli.report.run_record import RunRecord
from mimcl.model import checkpoint
from mimcl.pipeline.draw_counts import DrawCounts

BATCH, RATE = 64, 320.0  # draws, draws a second


def step_line(step: int, loss: float, rate: float = RATE, batch: int = BATCH, **more: float) -> dict:
    """Return a logged step as the recorder writes it."""
    return {
        "step": step,
        "draw": step * batch,
        "loss": loss,
        "lr": 1e-3 * loss,
        "grad_norm": 2 * loss,
        "images_per_second": rate,
        "data_wait": 0.25,
        "nonfinite_steps": 0,
        **more,
        "temperature": 0.2,
        "effective_fraction": 0.3,
    }


def window_line(number: int, draw: int, repeats: int, coverage: float) -> dict:
    """Return a window as the recorder writes it."""
    return {
        "window": number,
        "draw": draw,
        "temperature": 0.1 + number / 100,
        "effective_fraction": 0.15 + 0.1 * coverage,
        "digest": f"{number:016x}",
        "distance_q10": 0.1,
        "distance_q50": 0.2 + 0.1 * coverage,
        "distance_q90": 0.5,
        "coverage": coverage,
        "max_repeats": repeats,
    }


def evaluation_line(draw: int, nn: float, name: str = "online_knn", **settings: object) -> dict:
    """Return an evaluation as cli/evaluate/results.py and the online evaluation write it."""
    values = {"nn": nn, "knn": nn - 0.01}
    return {"evaluation": name, "draw": draw, "index": "f" * 32, "settings": settings, "values": values}


def write_run(
    folder: Path,
    lines: list[dict],
    counts: np.ndarray | None = None,
    index: str | None = None,
    recipe: Config | None = None,
    **values: object,
) -> Path:
    """Write a run folder with these metrics. `values` are config keys with __ for the dot, `index` a fingerprint."""
    folder.mkdir(parents=True)
    keys = {"data.batch_size": BATCH} | {key.replace("__", "."): value for key, value in values.items()}
    config = override(recipe or Config(recipe="cpu_small"), keys)
    write_yaml(folder / "config.yaml", config)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if counts is not None:
        DrawCounts(counts.astype(np.uint32)).save(folder / "draw_counts.npy")
    if index is not None:
        save(folder, 1, config, index, {"none": torch.zeros(1)})
    return folder


def evaluated_run(
    folder: Path,
    name: str,
    nns: Sequence[float] = (),
    losses: Sequence[float] = (1.0, 0.5),
    rate: float = RATE,
    lines: Sequence[dict] = (),
    **values: object,
) -> RunRecord:
    """Return a run as reports read it, with a loss and an online evaluation of nn every 10 steps."""
    steps = [step_line(10 * (place + 1), loss, rate) for place, loss in enumerate(losses)]
    judged = [evaluation_line(10 * (place + 1) * BATCH, nn) for place, nn in enumerate(nns)]
    return read_run(write_run(folder / name, [*steps, *judged, *lines], **values))


def save(folder: Path, step: int, config: Config, index: str, tensors: dict[str, torch.Tensor]) -> None:
    """Save a checkpoint of a run on the data with fingerprint `index`."""
    meta = {"position": step * config.data.batch_size, "config": asdict(config)}
    meta["fingerprints"] = {"index": index, "prototypes": None}
    checkpoint.save(folder / "checkpoints", step, tensors, {}, meta, keep_last=99)


def long_run(folder: Path, steps: int, images: int, window: int = 16, recipe: Config | None = None) -> Path:
    """Write a run that logged every step, with windows of `window` steps, metrics of a masker, and evaluations."""
    rng = np.random.default_rng(0)
    losses = 0.4 + np.exp(-np.arange(steps) / (steps / 8)) + 0.03 * rng.standard_normal(steps)
    rates = rng.uniform(250, 350, steps)
    lines: list[dict] = []
    for step in range(1, steps + 1):
        if (step - 1) % window == 0:
            number = (step - 1) // window
            lines.append(window_line(number, (step - 1) * BATCH, 1 + number // 4, min(1.0, step / steps + 0.1)))
        share = step / steps
        lines.append(step_line(step, losses[step - 1], rates[step - 1], hard_share=share, ranking_accuracy=0.6))
        if step % max(1, steps // 50) == 0:
            lines.append(evaluation_line(step * BATCH, 0.2 + 0.2 * share, bank=1000))
    counts = rng.poisson(steps * BATCH / images * rng.uniform(0.2, 1.8, images))
    return write_run(folder, lines, counts, recipe=recipe, trainer__epochs=steps * BATCH / images)
