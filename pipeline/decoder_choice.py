"""The choice of a decoder: the configured one, or the fastest that works on this machine."""

from __future__ import annotations

import os

import torch

from mimcl.pipeline.decode import Decoder, ReferenceDecoder, trial_batch
from mimcl.pipeline.files import DataError
from mimcl.pipeline.restart import RestartNeeded

DECODERS = ("dali-gpu", "dali-cpu", "reference")  # best first
# DALI reads it once a process. With 0, DALI's pool of device memory takes its memory from cudaMalloc, which works where
# the driver's virtual memory management is not supported, as in some sandboxes.
_POOL_VARIABLE = "DALI_USE_VMM"


def make_decoder(name: str, image_size: int, batch_size: int, threads: int, largest: int) -> tuple[Decoder, str]:
    """The named backend, or for "auto" the best that decodes a trial image; and a line that says which and why.

    `batch_size` is the most images a batch has, `largest` the most pixels that an image has before it is cropped.
    Raises DataError when the named backend does not work here, and RestartNeeded when DALI does not start on the GPU
    with its virtual memory pools on: without them it may.
    """
    if name not in ("auto", *DECODERS):
        raise DataError(f"there is no decoder {name!r}; choose auto, {', '.join(DECODERS)}")
    failures = []
    for candidate in DECODERS if name == "auto" else (name,):
        decoder = None
        try:
            decoder = _make(candidate, image_size, batch_size, threads, largest)
            for _, failed in decoder([trial_batch(image_size)]):
                if failed:
                    raise DataError(f"of a plain JPEG, {failed[0][1]}")
        except Exception as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            if candidate == "dali-gpu" and decoder and _POOL_VARIABLE not in os.environ:
                raise RestartNeeded(
                    f"dali-gpu does not start ({reason}); set {_POOL_VARIABLE}=0, which turns DALI's virtual memory "
                    "pools off, and start again, or choose another decoder",
                    {_POOL_VARIABLE: "0"},
                ) from error
            failures.append(f"{candidate}: {reason}")
        else:
            return decoder, "; ".join([f"decoder {candidate}", *failures])
    raise DataError(f"no decoder works here ({'; '.join(failures)}); try --set data.decoder=reference")


def _make(name: str, image_size: int, batch_size: int, threads: int, largest: int) -> Decoder:
    if name == "reference":
        return ReferenceDecoder(image_size, threads)
    if name == "dali-gpu" and not torch.cuda.is_available():
        raise DataError("no CUDA device")
    from mimcl.pipeline.dali import DaliDecoder

    return DaliDecoder(image_size, batch_size, threads, largest, gpu=name == "dali-gpu")
