"""The choice of a decoder: the configured one, or the fastest that works on this machine."""

from __future__ import annotations

import os
import sys

import torch

from mimcl.pipeline.dali_builds import has_dali, how_to_install, require_one_build
from mimcl.pipeline.decode import Decoder, ReferenceDecoder, trial_batch
from mimcl.pipeline.files import DataError
from mimcl.pipeline.restart import RestartNeeded

DECODERS = ("dali-gpu", "dali-cpu", "reference")  # best first
# DALI reads it once per process. With 0, DALI allocates device memory with cudaMalloc, which also works if the driver
# does not support virtual memory management, as in some sandboxes.
_POOL_VARIABLE = "DALI_USE_VMM"


def make_decoder(
    name: str, image_size: int, batch_size: int, threads: int, largest: int, scaled: bool = False
) -> tuple[Decoder, str]:
    """Make the named decoder, or for "auto" the fastest that decodes a trial image; returns a line on the choice too.

    A batch has at most `batch_size` images, and an image at most `largest` pixels before it is cropped. `scaled`
    decodes JPEGs at a smaller scale where that is enough (see `scaled_decode.py`), which dali-gpu cannot. Without DALI
    "auto" is the reference, and the line says how to install DALI. Raises DataError if the named decoder does not work
    on this machine or several builds of DALI are installed, and RestartNeeded if DALI does not start on the GPU with
    its virtual memory pools, since it may start without them.
    """
    if name not in ("auto", *DECODERS):
        raise DataError(f"unknown decoder {name!r}; choose auto, {', '.join(DECODERS)}")
    candidates, failures = DECODERS if name == "auto" else (name,), list[str]()
    if name != "reference":
        require_one_build()
        if not has_dali():
            how = how_to_install()
            if name != "auto":
                missing = f"is not installed: {how}" if how else f"has no build for {sys.platform}"
                raise DataError(f"{name} needs DALI, which {missing}; or choose the decoder reference")
            candidates = ("reference",)
            failures += [f"DALI is not installed: {how} for faster decoding"] if how else []
    for candidate in candidates:
        decoder = None
        try:
            decoder = _make(candidate, image_size, batch_size, threads, largest, scaled)
            for _, failed in decoder([trial_batch(image_size)]):
                if failed:
                    raise DataError(f"a plain JPEG fails: {failed[0][1]}")
        except Exception as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            if candidate == "dali-gpu" and decoder and _POOL_VARIABLE not in os.environ:
                raise RestartNeeded(
                    f"dali-gpu does not start ({reason}); set {_POOL_VARIABLE}=0 to turn off DALI's virtual memory "
                    "pools and start again, or choose another decoder",
                    {_POOL_VARIABLE: "0"},
                ) from error
            failures.append(f"{candidate}: {reason}")
        else:
            return decoder, "; ".join([f"decoder {candidate}", *failures])
    raise DataError(f"no decoder works on this machine ({'; '.join(failures)}); try --set data.decoder=reference")


def _make(name: str, image_size: int, batch_size: int, threads: int, largest: int, scaled: bool) -> Decoder:
    if name == "reference":
        return ReferenceDecoder(image_size, threads, scaled)
    if name == "dali-gpu" and scaled:
        raise DataError("it cannot decode at a smaller scale (data.scaled_decode)")
    if name == "dali-gpu" and not torch.cuda.is_available():
        raise DataError("no CUDA device")
    from mimcl.pipeline.dali import DaliDecoder

    return DaliDecoder(image_size, batch_size, threads, largest, gpu=name == "dali-gpu", scaled=scaled)
