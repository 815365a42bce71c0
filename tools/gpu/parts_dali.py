"""The dali half: decoding of packed images, and the whole stream with training."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import chain, cycle, islice
from pathlib import Path

import numpy as np
import torch
from gpu.bench import Bench
from gpu.dataset import DataSet
from gpu.lines import Line

from mimcl.model.metrics import Report
from mimcl.pipeline.decode import Decoder, Encoded, ReferenceDecoder

_MEAN, _PERCENTILE_99 = 1.0, 4  # tolerated differences from Pillow over all crops, in grey levels
_SMALL = 5  # images of a pipeline's first batch, by which DALI divides all later work
_WARM_UP = 3  # batches
_KB = (110, 125)  # size of an average image
_DECODE_RATE, _DATA_WAIT = 7000, 10  # goals: images/s, percent


def images(bench: Bench) -> Iterator[Line]:
    started = time.perf_counter()
    data = _data(bench)
    kilobytes = float(data.index.nbytes.mean()) / 1000
    met = _KB[0] <= kilobytes <= _KB[1]
    yield Line("average size of the generated images", kilobytes, "KB", f"{_KB[0]} to {_KB[1]}", met, must=True)
    yield Line(f"time to generate and pack {data.index.samples} images", time.perf_counter() - started, "s")


def memory(bench: Bench) -> Iterator[Line]:
    """Measure the memory of a decoder, from before its pipeline is built."""
    if not bench.rehearsal:
        torch.ones(1, device="cuda")  # create the CUDA context first: it is not the pipeline's
    first, *others = _data(bench).encoded(5, bench.scale.batch, 1 + bench.scale.batches)
    on_device, on_host = _device_memory(bench), _host_memory()
    built: list[float] = []

    def batches() -> Iterator[Encoded]:
        built.extend((_device_memory(bench) - on_device, _host_memory() - on_host))  # the pipeline is built by now
        yield _part_of(first, _SMALL)
        yield from others

    decoded = _decoder(bench)(batches())
    next(decoded)
    yield Line("memory of DALI right after its pipeline is built: device", built[0], "GiB")
    yield Line("memory of DALI right after its pipeline is built: host (resident)", built[1], "GiB")
    yield Line("memory of DALI after a first batch of 5: device", _device_memory(bench) - on_device, "GiB")
    yield Line("memory of DALI after a first batch of 5: host (resident)", _host_memory() - on_host, "GiB")
    for _ in decoded:
        pass
    yield Line(f"memory of DALI after {len(others)} batches: device", _device_memory(bench) - on_device, "GiB")
    yield Line(f"memory of DALI after {len(others)} batches: host (resident)", _host_memory() - on_host, "GiB")


def load_0(bench: Bench) -> Iterator[Line]:
    yield from _decoding(bench, 0.0, "CUDA cores")


def load_1(bench: Bench) -> Iterator[Line]:
    yield from _decoding(bench, 1.0, "JPEG engine")


def _decoding(bench: Bench, load: float, engine: str) -> Iterator[Line]:
    """Check pixels and speed in one pipeline that begins with a small batch; `load` is the JPEG engine's share."""
    from mimcl.pipeline import dali

    used = dali._HW_DECODER_LOAD
    name, must = f"decode, {engine}", load == used  # only the setting that mimcl uses has to be correct
    data, size = _data(bench), bench.scale.batch
    repeated, places = _one_draw_in_three_batches(data, size)
    compared = data.encoded(0, size, 1 if bench.rehearsal else 4)
    distinct = data.encoded(4, size, min(bench.scale.batches, 12))
    timed = islice(cycle(distinct), _WARM_UP + bench.scale.batches)
    dali._HW_DECODER_LOAD = load
    try:
        decoded = _decoder(bench)(chain([_part_of(distinct[0], _SMALL)], repeated, compared, timed))
        next(decoded)
        same = [next(decoded).images[place].cpu().float() for place in places]
        gap = max((image - same[0]).abs().max().item() for image in same)
        goal, met = ("0", gap == 0) if must else ("", None)
        yield Line(f"{name}: one draw in 3 batches, largest difference", gap, "grey levels", goal, met, must)
        yield from _differences(bench, name, [next(decoded).images.cpu() for _ in compared], compared, must)
        for _ in range(_WARM_UP):
            next(decoded)
        bench.wait()
        started = time.perf_counter()
        for _ in decoded:
            pass
        bench.wait()
        rate = size * bench.scale.batches / (time.perf_counter() - started)
    finally:
        dali._HW_DECODER_LOAD = used
    has_goal = must and not bench.rehearsal
    goal, met = (f">= {_DECODE_RATE:,}", rate >= _DECODE_RATE) if has_goal else ("", None)
    yield Line(f"{name}, {bench.threads} threads{' (used by mimcl)' if must else ''}", rate, "img/s", goal, met)


def _one_draw_in_three_batches(data: DataSet, size: int) -> tuple[list[Encoded], tuple[int, ...]]:
    """Return batches of different images and sizes that all contain the same draw, and its place in each."""
    draw, others = data.encoded(1, size, 1)[0], data.encoded(2, size, 3)
    places, sizes, batches = (0, size // 2, _SMALL - 1), (size, size, _SMALL), []
    for batch, place, length in zip(others, places, sizes, strict=True):
        batch.data[place], batch.boxes[place], batch.flips[place] = draw.data[0], draw.boxes[0], draw.flips[0]
        batches.append(_part_of(batch, length))
    return batches, places


def _differences(
    bench: Bench, name: str, decoded: list[torch.Tensor], batches: list[Encoded], must: bool
) -> Iterator[Line]:
    """Compare pixels with Pillow's."""
    reference = ReferenceDecoder(decoded[0].shape[-1], bench.threads)
    gaps = torch.cat(
        [
            (images.short() - reference.decode(batch).images.short()).abs().to(torch.uint8)
            for images, batch in zip(decoded, batches, strict=True)
        ]
    )
    for measure, gap, limit in (
        ("mean", gaps.float().mean().item(), _MEAN),
        ("99th percentile", _percentile(gaps, 0.99), _PERCENTILE_99),
    ):
        goal, met = (f"<= {limit:g}", gap <= limit) if must else ("", None)
        yield Line(f"{name}: difference from Pillow, {measure}", gap, "grey levels", goal, met, must)
    worst = gaps.float().mean(dim=(1, 2, 3)).max().item()
    yield Line(f"{name}: difference from Pillow, mean of the worst crop", worst, "grey levels")


def _percentile(values: torch.Tensor, share: float) -> float:
    """Return the least level that `share` of the uint8 values do not exceed."""
    counts = np.bincount(values.flatten().numpy(), minlength=256)
    return float(np.searchsorted(counts.cumsum(), share * values.numel()))


def reading(bench: Bench) -> Iterator[Line]:
    data, size = _data(bench), bench.scale.batch
    ids = data.ids(3, size, bench.scale.batches)
    seconds = bench.seconds(lambda: [data.store.read(batch) for batch in ids], repeats=3)
    yield Line("read, checksum included", size * len(ids) / seconds, "img/s")


def end_to_end(bench: Bench) -> Iterator[Line]:
    """Time the stream by itself, then with training, compiled per block."""
    size, stretch, data = bench.scale.batch, bench.scale.stretch, _data(bench)
    reports: list[Report] = []
    batches = iter(data.stream(_decoder(bench), size, 4 * stretch, bench.scale.device))
    for _ in range(stretch):
        next(batches)
    started = time.perf_counter()
    count = sum(len(batch.images) for batch in batches)
    bench.wait()
    yield Line("read and decode (the stream without training)", count / (time.perf_counter() - started), "img/s")
    steps = 6 * stretch
    trainer = bench.trainer(size, steps, "blocks")
    stream = data.stream(_decoder(bench), size, steps, bench.scale.device)
    timed = bench.timed(trainer, stream, reports)
    yield Line("end to end, compiled per block", size / timed.seconds, "img/s")
    wait = 100 * float(np.mean([report.data_wait for report in reports[2:]]))
    goal, met = ("", None) if bench.rehearsal else (f"<= {_DATA_WAIT} %", wait <= _DATA_WAIT)
    yield Line("end to end: data-wait", wait, "%", goal, met)
    yield Line("end to end: peak memory of torch", timed.peak, "GiB")
    yield Line("end to end: memory in use on the device", _device_memory(bench), "GiB")
    falls = timed.losses[-1] < 0.97 * timed.losses[0]
    losses = f"{timed.losses[0]:.3f} -> {timed.losses[-1]:.3f}"
    yield Line(f"end to end: loss over {steps} steps", losses, "", "falls", falls, must=True)


def _data(bench: Bench) -> DataSet:
    return bench.once("data", lambda: DataSet.make(bench.folder, bench.scale.images, bench.threads))


def _decoder(bench: Bench) -> Decoder:
    from mimcl.pipeline.dali import DaliDecoder

    image_size = bench.once("model", bench.scale.make_model).image_size
    return DaliDecoder(
        image_size, bench.scale.batch, bench.threads, _data(bench).index.largest, gpu=not bench.rehearsal
    )


def _part_of(batch: Encoded, size: int) -> Encoded:
    return Encoded(batch.data[:size], batch.boxes[:size], batch.flips[:size])


def _device_memory(bench: Bench) -> float:
    """Return the GiB in use on the device, by all processes; 0 on the CPU."""
    if bench.rehearsal:
        return 0.0
    free, total = torch.cuda.mem_get_info()
    return (total - free) / 2**30


def _host_memory() -> float:
    """Return the resident memory of this process in GiB; includes pinned memory if the driver maps it as such."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmRSS"].split()[0]) / 2**20
