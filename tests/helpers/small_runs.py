"""Options of a run that one core trains in seconds, and the files of a run."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from mimcl.model.async_checkpoint import AsyncCheckpointer

IMAGES, BATCH, STEPS, EVERY = 40, 64, 20, 8  # steps between checkpoints
_VARIES = ("images_per_second", "data_wait")
_SMALL = (
    f"data.batch_size={BATCH}",
    "data.image_size=32",
    "data.decode_threads=2",
    "model.decoder_width=32",
    "model.decoder_depth=1",
    "trainer.precision=float32",
    "trainer.log_every_steps=1",
    f"trainer.checkpoint_every_steps={EVERY}",
    "trainer.keep_last=9",
    "curriculum.share=0.5",
    "report=false",
)


FEW_PATCHES = "model.patch_size=16"  # for runs that must be fast


def train(out: Path | str, *settings: str, steps: int = STEPS, decoder: str = "reference") -> list[str]:
    """Return the arguments of a run whose prototype curriculum lasts half the steps, rounded to windows of 4."""
    flags = ["--recipe", "cpu_small", "--curriculum", "proto", "--epochs", str(steps * BATCH / IMAGES)]
    words = [word for setting in (*_SMALL, *settings) for word in ("--set", setting)]
    return ["train", *flags, "--decoder", decoder, *words, "--out", str(out)]


def keep_every_checkpoint(patch: pytest.MonkeyPatch) -> None:
    """Make training wait for the previous checkpoint; otherwise a busy machine may skip one that is due."""
    start = AsyncCheckpointer.start

    def waiting(self: AsyncCheckpointer, *arguments: Any, **options: Any) -> None:
        self.flush()
        start(self, *arguments, **options)

    patch.setattr(AsyncCheckpointer, "start", waiting)


def metrics(run: Path) -> list[dict]:
    """Return the lines of metrics.jsonl without timings."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in _VARIES} for line in lines]


def steps_of(run: Path) -> list[int]:
    """Return the steps logged so far."""
    path = run / "metrics.jsonl"
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [line["step"] for line in map(json.loads, lines) if "step" in line]


def latest(run: Path) -> Path:
    return run / "checkpoints" / (run / "checkpoints" / "latest").read_text().strip()


def weights(run: Path) -> str:
    """Return a digest of the newest checkpoint's weights."""
    return hashlib.sha256((latest(run) / "weights.safetensors").read_bytes()).hexdigest()


def back_to(step: int, run: Path, copy: Path) -> Path:
    """Copy the run as if it had been killed soon after the checkpoint of `step`; return `copy`."""
    shutil.copytree(run, copy)
    for later in (copy / "checkpoints").glob("[0-9]*"):
        if int(later.name) > step:
            shutil.rmtree(later)
    (copy / "checkpoints" / "latest").write_text(f"{step:08d}\n")
    return copy


def assert_same_run(one: Path, other: Path) -> None:
    """Assert that both runs wrote the same bits: weights, metrics and draw counts."""
    assert latest(one).name == latest(other).name
    assert weights(one) == weights(other)
    assert metrics(one) == metrics(other)
    assert (one / "draw_counts.npy").read_bytes() == (other / "draw_counts.npy").read_bytes()


def assert_close_runs(one: Path, other: Path, tolerance: float) -> None:
    """Assert that draws are equal, and that weights and losses agree but for the order of float32 sums."""
    assert latest(one).name == latest(other).name
    assert (one / "draw_counts.npy").read_bytes() == (other / "draw_counts.npy").read_bytes()
    first, second = metrics(one), metrics(other)
    assert len(first) == len(second)
    for line, match in zip(first, second, strict=True):
        assert line.keys() == match.keys()
        for key in line:
            if key in ("loss", "grad_norm"):
                np.testing.assert_allclose(
                    line[key], match[key], rtol=100 * tolerance if key == "grad_norm" else tolerance
                )
            else:
                assert line[key] == match[key], key
    tensors, others = (load_file(latest(run) / "weights.safetensors") for run in (one, other))
    for name, tensor in tensors.items():
        np.testing.assert_allclose(tensor, others[name], atol=100 * tolerance, err_msg=name)
