"""Training whose decoder stops answering at an exact micro-batch, in a real process (see `ranks`)."""

import time
from collections.abc import Callable
from functools import partial

from helpers import ranks


def decoder(after: int) -> Callable[[], None]:
    """Return what to do before the command: the reference decoder decodes `after` micro-batches, and no more."""
    return partial(_block_decoder, after)


def _block_decoder(after: int) -> None:
    from mimcl.pipeline.decode import ReferenceDecoder

    ranks.shrink_model()
    decode, decoded = ReferenceDecoder.decode, 0

    def blocking(self, batch):
        nonlocal decoded
        if len(batch.data) > 1:  # the trial of a new decoder has one image
            if decoded >= after:
                time.sleep(3600)
            decoded += 1
        return decode(self, batch)

    ReferenceDecoder.decode = blocking
