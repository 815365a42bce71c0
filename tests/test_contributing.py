"""The worked examples of CONTRIBUTING.md do what it says, and the places where they are registered exist."""

import io
import pickle
import re
import struct
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.images import FORMATS, encoded
from PIL import Image

from mimcl.curriculum.masking.masker import Masker
from mimcl.pipeline.decode import Encoded, ReferenceDecoder
from mimcl.pipeline.files import DataError

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
EXAMPLES = dict(re.findall(r"^`([a-z_/]+\.py)`:\n\n```python\n(.*?)```", TEXT, re.DOTALL | re.MULTILINE))
KEYS = torch.tensor([3, -5, 2**40, 77, 10**18, -(2**62)])


def example(path: str, monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """Run the code that is to be written to `path`, as the module that it would be."""
    module = types.ModuleType("mimcl." + path.removesuffix(".py").replace("/", "."))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(EXAMPLES[path], path, "exec"), module.__dict__)
    return module


def test_the_examples_are_new_files_beside_existing_ones():
    assert len(EXAMPLES) == 3
    for path in EXAMPLES:
        assert not (ROOT / path).exists()
        assert (ROOT / path).parent.is_dir()


def test_the_files_and_names_in_the_text_exist():
    prose = re.sub(r"```python\n.*?```", "", TEXT, flags=re.DOTALL)
    files = {path for path in re.findall(r"`([\w./-]+/[\w./-]+\.\w+)`", prose) if path not in EXAMPLES}
    assert len(files) > 15
    assert not [path for path in files if not (ROOT / path).is_file()]
    registered = re.findall(r"^- `([\w/]+\.py)`: (.*(?:\n  .*)*)", prose, re.M)
    assert len(registered) > 10
    missing = [
        (path, name)
        for path, what in registered
        for name in re.findall(r"`([\w.]+)`", what)
        if not re.search(rf"\b{name.rpartition('.')[2]}\b", (ROOT / path).read_text("utf-8"))
    ]
    assert not missing


@pytest.mark.parametrize("side", [4, 7, 14])
@pytest.mark.parametrize("ratio", [0.75, 0.5])
def test_the_masker_removes_rows(monkeypatch, side, ratio):
    masker = example("curriculum/masking/rows.py", monkeypatch).RowsMasker(side * side, ratio)
    assert isinstance(masker, Masker)
    mask = masker.propose(torch.empty(0), KEYS, torch.nn.Identity(), torch.tensor(0.0)).mask
    removed = side * side - int(side * side * (1 - ratio))
    of_rows = mask.unflatten(1, (side, side)).sum(2)
    assert (of_rows.sum(1) == removed).all()
    assert ((of_rows == side).sum(1) == removed // side).all()
    assert len(of_rows.unique(dim=0)) > 1
    alone = [masker.propose(torch.empty(0), key[None], torch.nn.Identity(), torch.tensor(0.0)).mask for key in KEYS]
    assert torch.equal(torch.cat(alone), mask)


@pytest.mark.parametrize(("r0", "r_inf"), [(0.15, 0.632), (0.01, 0.5)])
def test_the_schedule_rises_from_r0_to_r_inf(r0, r_inf):
    (code,) = re.findall(r"```python\n(def \w+\(t: float, r0.*?)```", TEXT, re.DOTALL)
    found: dict = {}
    exec(code, found)
    r = [found["quadratic"](t, r0, r_inf) for t in np.linspace(0, 1, 50)]
    assert (r[0], r[-1]) == (pytest.approx(r0), pytest.approx(r_inf))
    assert (np.diff(r, 2) > 0).all()


def test_the_source_reads_images_and_labels(monkeypatch, tmp_path):
    idx = example("pipeline/sources/idx.py", monkeypatch)
    pixels, labels = np.random.default_rng(0).integers(0, 256, (5, 4, 6), np.uint8), [2, 0, 1, 2, 2]
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(struct.pack(">4I", 0x803, *pixels.shape) + pixels.tobytes())
    unlabelled = idx.idx_images(path)
    assert [item.label for item in unlabelled.splits["train"]] == [-1] * 5
    beside = tmp_path / "train-labels-idx1-ubyte"
    beside.write_bytes(struct.pack(">2I", 0x801, 5) + bytes(labels))
    source = idx.idx_images(path)
    assert source.modified == path.stat().st_mtime_ns
    items = pickle.loads(pickle.dumps(source.splits["train"]))  # packing reads in other processes
    assert [item.label for item in items] == labels
    for item, image in zip(items, pixels, strict=True):
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(item.read()))), image)
    for damaged in (path.read_bytes()[:-1], path.read_bytes()[:10], b"", path.read_bytes() + b"x"):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="download it again"):
            idx.idx_images(path)


@pytest.mark.parametrize("kind", FORMATS)
def test_the_decoder_is_like_the_reference(monkeypatch, kind):
    decoder = example("pipeline/torch_resize.py", monkeypatch).TorchResizeDecoder(48, 2)
    images = [encoded(kind, seed, 160, 120) for seed in range(3)]
    data = [np.frombuffer(image, np.uint8) for image in (*images, images[0][:300], b"")]
    boxes = np.array([[0, 0, 160, 120], [13, 7, 101, 33], [90, 70, 70, 50], [0, 0, 9, 9], [0, 0, 1, 1]], np.int32)
    flips = np.array([False, True, False, True, False])
    for size in (None, 32):
        batch = Encoded(data, boxes, flips, size)
        (ours,), (theirs,) = decoder([batch]), ReferenceDecoder(48, 2)([batch])
        assert ours.failures == theirs.failures
        assert [place for place, _ in ours.failures][-1] == 4
        assert ours.images.shape == theirs.images.shape
        difference = (ours.images.float() - theirs.images.float()).abs()
        assert difference.max() <= 1  # of 255
        assert difference.mean() < 0.01
