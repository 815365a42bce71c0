"""Batches that fit the data: a batch of most of the images leaves a run few steps, and a curriculum no windows."""

from __future__ import annotations

from mimcl.cli.config import Config

_BATCHES_PER_EPOCH = 8  # at least


def fitting_batch(batch_size: int, samples: int, multiple: int = 1) -> int:
    """Return `batch_size`, or if it is more than an eighth of the images a power of two that is not.

    It is at least `multiple`, the number of draws that a masker groups.
    """
    most = max(samples // _BATCHES_PER_EPOCH, 1)
    return batch_size if batch_size <= most else max(1 << (most.bit_length() - 1), min(multiple, batch_size))


def batch_advice(config: Config, samples: int) -> str | None:
    """Return a line that proposes a smaller batch, None where the batch fits."""
    batch = config.data.batch_size
    group = config.learned_masking.group_size if config.masking.name == "learned" else 1
    fitting = fitting_batch(batch, samples, group)
    if fitting == batch:
        return None
    return (
        f"batch {batch:,} is more than an eighth of the {samples:,} images, {max(samples / batch, 0.01):.2g} steps an "
        f"epoch; --batch-size {fitting} makes {samples / fitting:.3g}"
    )
