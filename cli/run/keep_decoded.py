"""Decodes all images of a split and keeps them in memory, with a progress bar."""

from __future__ import annotations

import torch

from mimcl.cli.bars import image_bar
from mimcl.cli.console import format_bytes
from mimcl.pipeline.batch_shares import BatchShares
from mimcl.pipeline.index import ShardIndex
from mimcl.pipeline.kept_pixels import KeptPixels, pixel_bytes, require_room


def keep_decoded(
    index: ShardIndex, image_size: int, threads: int, device: torch.device, shares: BatchShares
) -> tuple[KeptPixels, str]:
    """Return the images as a decoder, and a line about them. Raises DataError, first of all where they do not fit."""
    require_room(index, device, shares.local_size)
    with image_bar("decoding", index.samples, shown=shares.rank == 0) as advance:
        kept = KeptPixels(index, image_size, threads, device, advance)
    where = "on the GPU" if device.type == "cuda" else "in memory"
    each = ", in each process" if shares.world_size > 1 else ""
    bad = f"; {kept.bad:,} are bad" if kept.bad else ""
    return kept, f"{index.samples:,} decoded images kept {where} ({format_bytes(pixel_bytes(index))}{each}){bad}"
