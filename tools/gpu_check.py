"""What a CUDA machine makes of mimcl: correctness first, then speed. Prints a table, appends a row to gpu.jsonl.

    python tools/gpu_check.py [--row FILE]
    python tools/gpu_check.py --rehearse      the same on the CPU with small sizes; appends nothing

Takes less than 8 minutes on a machine with 16 cores. A part that fails, or whose packages are missing, is reported and
the others go on; the exit code is 1 when a part failed or a goal of correctness (not of speed) was missed. Images are
generated: 500 x 375 JPEG of about 110 KB, as ImageNet's are. The goals are those of one H200 with 16 cores.
"""

import argparse
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from gpu_bench import GPU, REHEARSAL, SIZE, Bench

from mimcl.model.metrics import Outcome, Report
from mimcl.model.trainer import Trainer
from mimcl.pipeline.decode import Decoder, Encoded, ReferenceDecoder

ROOT = Path(__file__).resolve().parent.parent
GFLOP, PEAK = 58.6e9, 790e12  # an image through MAE ViT-B/16 and back; an H200's bfloat16 products a second
MEAN, PERCENTILE_99 = 0.5, 3  # tolerated differences from the reference over all crops, in grey levels
WARM = 5  # batches or steps before a measurement


@dataclass(frozen=True)
class Line:
    """Of the table; `met` is None where there is no goal, `must` marks goals of correctness."""

    name: str
    value: float | str
    unit: str = ""
    goal: str = ""
    met: bool | None = None
    must: bool = False

    def __str__(self) -> str:
        value = self.value if isinstance(self.value, str) else f"{self.value:,.4g}"
        verdict = {None: "", True: "met", False: "MISSED"}[self.met]
        return f"{self.name:62} {value + ' ' + self.unit:28} {self.goal:14} {verdict}".rstrip()


def pixels(bench: Bench) -> Iterator[Line]:
    batches, reference = bench.encoded(seed=0)[:4], ReferenceDecoder(SIZE, bench.threads)
    pairs = zip(bench.decoder()(batches), batches, strict=True)
    gaps = torch.cat(
        [(decoded.images.cpu().float() - reference.decode(batch).images.float()).abs() for decoded, batch in pairs]
    )
    mean, high = gaps.mean().item(), float(np.percentile(gaps.numpy(), 99))
    yield Line("decoder - reference, mean", mean, "grey levels", f"<= {MEAN}", mean <= MEAN, must=True)
    yield Line(
        "the same, 99th percentile", high, "grey levels", f"<= {PERCENTILE_99}", high <= PERCENTILE_99, must=True
    )
    yield Line("the same, mean of the worst crop", gaps.mean(dim=(1, 2, 3)).max().item(), "grey levels")


def neighbours(bench: Bench) -> Iterator[Line]:
    gap = spread(bench, bench.decoder())
    yield Line("same draw in 3 batches, largest difference", gap, "grey levels", "0", gap == 0, must=True)


def spread(bench: Bench, decoder: Decoder) -> float:
    """The largest difference between the pixels of one draw in three batches of other company, place and size."""
    draw, others = bench.encoded(seed=1)[0], bench.encoded(seed=2)[:3]
    places, sizes, cut = (0, bench.scale.batch // 2, 4), (bench.scale.batch, bench.scale.batch, 5), []
    for batch, place, size in zip(others, places, sizes, strict=True):
        batch.data[place], batch.boxes[place], batch.flips[place] = draw.data[0], draw.boxes[0], draw.flips[0]
        cut.append(Encoded(batch.data[:size], batch.boxes[:size], batch.flips[:size]))
    found = [decoded.images[place].cpu().float() for decoded, place in zip(decoder(cut), places, strict=True)]
    return max((one - found[0]).abs().max().item() for one in found)


def reading(bench: Bench) -> Iterator[Line]:
    parts, images = bench.ids(seed=3), bench.scale.batch * bench.scale.batches
    yield Line("read, checksum included", bench.rate(lambda: [*map(bench.store.read, parts)], images), "img/s")


def decoding(bench: Bench) -> Iterator[Line]:
    """The ways that a JPEG can go through DALI; the first is the program's."""
    from mimcl.pipeline import dali

    class WholeImage(dali.DaliDecoder):
        def _decode(self, data, start, shape):
            gpu = {"device": "mixed", "hw_decoder_load": dali._HW_DECODER_LOAD}
            where = {"device": "cpu"} if self._device_id is None else gpu
            rules = {"adjust_orientation": False, "jpeg_fancy_upsampling": True}
            images = dali.fn.decoders.image(data, **rules, **where)
            return dali.fn.slice(images, start=start, shape=shape, axis_names="WH")

    batches, used = bench.encoded(seed=4), dali._HW_DECODER_LOAD
    images = bench.scale.batch * (len(batches) - WARM % len(batches))
    for load, engine in ((0.0, "CUDA cores"), (1.0, "JPEG engine")):
        for kind, what in ((dali.DaliDecoder, "box only"), (WholeImage, "whole image")):
            name = f"decode, {what}, {engine}"
            try:
                dali._HW_DECODER_LOAD = load
                gpu = bench.scale.device == "cuda"
                decoder = kind(SIZE, bench.scale.batch, bench.threads, bench.index.largest, gpu=gpu)
                decoded = decoder(batches)
                for _ in range(WARM % len(batches)):
                    next(decoded)
                yield Line(name, bench.rate(lambda of=decoded: [None for _ in of], images), "img/s")
                yield Line(f"{name}, same draw in 3 batches", spread(bench, decoder), "grey levels")
            except Exception as error:  # an engine that this GPU lacks
                yield failure(name, error, must=load == used and kind is dali.DaliDecoder)
            finally:
                dali._HW_DECODER_LOAD = used


def model_alone(bench: Bench) -> Iterator[Line]:
    """Steps over one batch that lies on the device."""
    batch, steps = next(iter(bench.stream(1))), bench.scale.steps
    ready = [
        SimpleNamespace(images=batch.images, keys=batch.keys, position=(step + 1) * bench.scale.batch, bad=())
        for step in range(steps)
    ]
    for name, compiled in (("eager", False), ("compiled", True)):
        trainer = bench.trainer(steps, compiled)

        def run(of: Trainer = trainer) -> None:
            of.position = 0
            of.run(ready, (), lambda step, report: None)

        run()  # warms up and compiles
        speed = bench.rate(run, steps * bench.scale.batch)
        yield Line(f"training step alone, {name}", speed, "img/s")
        if bench.scale == GPU:
            share = 100 * speed * GFLOP / PEAK
            goal = (">= 45 %", share >= 45) if compiled else ("", None)
            yield Line(f"the same, of {PEAK / 1e12:g} TFLOP/s", share, "%", *goal)


def end_to_end(bench: Bench) -> Iterator[Line]:
    """Steps over the whole stream, compiled; figures of the second half."""
    steps, reports = 2 * bench.scale.steps, []
    used = []
    if bench.scale.device == "cuda":
        torch.cuda.reset_peak_memory_stats()

    def after_step(step: int, report: Report | None, outcomes: list[Outcome]) -> None:
        if report:
            reports.append(report)
            used.append(memory_used(bench))

    bench.trainer(steps, compiled=True).run(bench.stream(steps), (), after_step)
    late = reports[len(reports) // 2 :]
    falls = reports[-1].loss < 0.97 * reports[0].loss
    losses = f"{reports[0].loss:.3f} -> {reports[-1].loss:.3f}"
    yield Line(f"loss over {steps} bfloat16 steps", losses, "", "falls", falls, must=True)
    yield Line("end to end, compiled", float(np.mean([report.images_per_second for report in late])), "img/s")
    waited = 100 * float(np.mean([report.data_wait for report in late]))
    yield Line("end to end, data-wait", waited, "%", "<= 10 %", waited <= 10)
    if bench.scale.device == "cuda":
        yield Line("peak memory of torch", torch.cuda.max_memory_allocated() / 2**30, "GiB")
        yield Line("memory used on the device", used[-1], "GiB")
        yield Line("its growth over the second half", used[-1] - used[len(used) // 2], "GiB")


def memory_used(bench: Bench) -> float:
    """GiB of the device, DALI's included."""
    if bench.scale.device == "cpu":
        return 0.0
    free, total = torch.cuda.mem_get_info()
    return (total - free) / 2**30


def test_suite(bench: Bench) -> Iterator[Line]:
    """Those of the tests that need a GPU."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"]
    done = subprocess.run([*command, "--continue-on-collection-errors"], cwd=ROOT, capture_output=True, text=True)
    lines = done.stdout.strip().splitlines() or [done.stderr.strip()[-200:]]
    print("\n".join(line for line in lines if line.startswith(("FAILED", "ERROR"))))
    passed = done.returncode == 0 and (" passed" in lines[-1] or bench.scale == REHEARSAL)  # there all of them skip
    yield Line("tests marked gpu", re.sub(r"[= ]+$|^[= ]+", "", lines[-1]), "", "pass", passed, must=True)


def failure(name: str, error: Exception, must: bool) -> Line:
    reason = " ".join(str(error).split()) or type(error).__name__
    return Line(name, f"failed: {type(error).__name__}: {reason[-300:]}", met=False if must else None, must=must)


def versions() -> dict[str, str]:
    found = {"python": sys.version.split()[0], "torch": torch.__version__, "cuda": str(torch.version.cuda)}
    for name in ("nvidia-dali-cuda130", "nvidia-nvimgcodec-cu13", "timm"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "missing"
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, small; appends no row")
    parser.add_argument("--row", type=Path, default=ROOT / "tools/bench/gpu.jsonl", help="file to append the row to")
    options = parser.parse_args()
    if not (options.rehearse or torch.cuda.is_available()):
        print("gpu_check: no CUDA device; --rehearse runs the same steps on the CPU", file=sys.stderr)
        return 2
    scale = REHEARSAL if options.rehearse else GPU
    device = "CPU" if options.rehearse else torch.cuda.get_device_name()
    lines, started = [], time.perf_counter()
    print(f"{device}, {os.cpu_count()} cores, {versions()}", flush=True)

    needs = {pixels: "nvidia.dali", neighbours: "nvidia.dali", decoding: "nvidia.dali", test_suite: "pytest"}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), scale)
        for check in (pixels, neighbours, reading, decoding, model_alone, end_to_end, test_suite):
            name, package = check.__name__.replace("_", " "), needs.get(check)
            try:
                if package and importlib.util.find_spec(package) is None:
                    lines.append(Line(name, f"skipped: {package} is not installed"))
                    print(lines[-1], flush=True)
                    continue
                for line in check(bench):
                    lines.append(line)
                    print(line, flush=True)
            except Exception as error:
                lines.append(failure(name, error, must=True))
                print(lines[-1], flush=True)
    seconds = time.perf_counter() - started
    lines.append(Line("gpu_check in all", seconds, "s", "< 480 s", seconds < 480))
    print(lines[-1])
    if not options.rehearse:
        row = {"device": device, "cores": os.cpu_count(), "versions": versions(), "lines": [*map(asdict, lines)]}
        with open(options.row, "a") as file:
            file.write(json.dumps(row) + "\n")
    return int(any(line.must and line.met is False for line in lines))


if __name__ == "__main__":
    sys.exit(main())
