"""Feature extractors: the model's own vectors, weights from files and a hub, SIFT on textures, refusals in one line."""

import http.server
import subprocess
import sys
import threading
import time

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
from helpers.typicality import collection, resized, stripes
from safetensors.torch import save_file

from mimcl.curriculum import features
from mimcl.curriculum.features import PixelFeatures, SiftFeatures, TimmFeatures, build_extractor
from mimcl.curriculum.timm_weights import fetch_weights

MODEL = "test_byobnet"  # one of timm's own for tests: 0.5 million weights, and ImageNet's mean and deviation
REPOSITORY = "timm/test_byobnet.r160_in1k"


def random_images(count, side, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (count, 3, side, side), np.uint8))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(3)
    return timm.create_model(MODEL, num_classes=10).eval()


@pytest.fixture
def expected(model):
    """Four images and the model's own pooled vectors of them, before the classifier."""
    images = random_images(4, 160)
    config = timm.data.resolve_model_data_config(model)
    mean, std = (torch.tensor(config[name]).view(3, 1, 1) for name in ("mean", "std"))
    with torch.inference_mode():
        pooled = model.forward_head(model.forward_features((images / 255 - mean) / std), pre_logits=True)
    return images, pooled.numpy()


def write(path, state):
    if path.suffix == ".safetensors":
        save_file({name: value.contiguous() for name, value in state.items()}, path)
    else:
        torch.save(state, path)
    return path


@pytest.mark.parametrize(
    ("name", "nesting"), [("w.safetensors", None), ("w.pth", None), ("w.pth", "state_dict"), ("w.bin", "model")]
)
def test_local_weights_give_the_models_own_features(tmp_path, model, expected, name, nesting):
    state = {nesting: model.state_dict(), "epoch": 3} if nesting else model.state_dict()
    extractor, reason = build_extractor(f"timm:{MODEL}@{write(tmp_path / name, state)}")
    images, pooled = expected
    found = extractor(images)
    assert (extractor.name, extractor.image_size, reason) == (f"timm:{MODEL}@{name}", 160, "requested")
    assert found.dtype == np.float32
    tolerance = 1e-5 if extractor.device.type == "cpu" else 0.01  # a GPU may round products to 10 bits
    np.testing.assert_allclose(found, pooled, atol=tolerance, rtol=tolerance)


def test_bfloat16_changes_features_a_little(tmp_path, model, expected):
    spec = f"timm:{MODEL}@{write(tmp_path / 'w.pth', model.state_dict())}"
    (exact, _), (fast, _) = (build_extractor(spec, precision=precision) for precision in ("float32", "bfloat16"))
    assert (exact.precision, fast.precision) == ("float32", "bfloat16")
    one, other = exact(expected[0]), fast(expected[0])
    assert other.dtype == np.float32
    assert not np.array_equal(one, other)
    cosine = (one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)
    assert cosine.min() > 0.999


class Hostile:
    def __reduce__(self):
        return (subprocess.check_call, (["touch", "hostile-code-ran"],))


def test_file_that_holds_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": Hostile()}, "evil.pth")
    with pytest.raises(ValueError, match=r"^evil\.pth is damaged") as caught:
        TimmFeatures(MODEL, "evil.pth")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "hostile-code-ran").exists()


def test_unusable_weights_are_refused_in_one_line(tmp_path, model):
    state = dict(model.state_dict())
    weight = "stem.conv.weight"
    lacking = {name: value for name, value in state.items() if name != weight}
    other = state | {weight: torch.zeros(3)}
    (tmp_path / "cut.safetensors").write_bytes(write(tmp_path / "a.safetensors", state).read_bytes()[:5000])
    (tmp_path / "list.pth").write_bytes(write(tmp_path / "b.pth", [1, 2]).read_bytes())
    cases = {
        write(tmp_path / "lacking.safetensors", lacking): r"1 of \d+ .*stem\.conv\.weight",
        write(tmp_path / "other.pth", other): r"1 of \d+ .*stem\.conv\.weight",
        tmp_path / "cut.safetensors": "is damaged",
        tmp_path / "list.pth": r"(\d+) of \1 weights",
        tmp_path / "nowhere.pth": "not found",
    }
    for path, message in cases.items():
        with pytest.raises(ValueError, match=message) as caught:
            TimmFeatures(MODEL, path)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="timm:no_such_model: Unknown model"):
        TimmFeatures("no_such_model", tmp_path / "a.safetensors")


class Hub(http.server.BaseHTTPRequestHandler):
    """Serves one file of weights as the hub does; `delay` delays every answer by some seconds."""

    content, delay = b"", 0.0
    log_message = lambda *_: None  # noqa: E731

    def answer(self, body):
        time.sleep(self.delay)
        found = self.path.endswith(f"{REPOSITORY}/resolve/main/model.safetensors")
        content = self.content if found else b""
        self.send_response(200 if found else 404)
        self.send_header("ETag", '"0123456789abcdef"')
        self.send_header("X-Repo-Commit", "a" * 40)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)

    def do_HEAD(self):
        self.answer(False)

    def do_GET(self):
        self.answer(True)


def stop(server):
    server.shutdown()
    server.server_close()


@pytest.fixture
def hub(tmp_path, monkeypatch, model):
    """A hub on this machine and an empty cache; the attributes of its handler set what it does."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    handler = type("Handler", (Hub,), {"content": write(tmp_path / "w.safetensors", model.state_dict()).read_bytes()})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    # The library reads the environment when it is imported.
    url = f"http://127.0.0.1:{server.server_port}"
    for name, value in {
        "ENDPOINT": url,
        "HUGGINGFACE_CO_URL_TEMPLATE": url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(tmp_path / "cache"),
        "HF_HUB_OFFLINE": False,
    }.items():
        monkeypatch.setattr(huggingface_hub.constants, name, value)
    yield handler, server
    stop(server)


def test_weights_from_a_hub_and_then_from_its_cache(hub, monkeypatch, model, expected):
    _, server = hub
    monkeypatch.setattr(features, "DEFAULT_MODEL", MODEL)
    images, pooled = expected
    extractor, reason = build_extractor("auto", timeout_s=60)
    assert extractor.name == f"timm:{MODEL}"
    assert MODEL in reason
    tolerance = 1e-5 if extractor.device.type == "cpu" else 0.05
    np.testing.assert_allclose(extractor(images), pooled, atol=tolerance, rtol=tolerance)
    stop(server)
    assert fetch_weights(MODEL)[1] == ""


def test_hub_that_does_not_answer_falls_back_to_sift(hub, capfd):
    handler, server = hub
    handler.delay = 20.0
    start = time.monotonic()
    extractor, reason = build_extractor("auto", timeout_s=2.0)
    assert time.monotonic() - start < 8
    assert extractor.name == "sift"
    assert f"timm/{features.DEFAULT_MODEL}" in reason
    assert "timed out" in reason
    handler.delay = 0.0
    path, reason = fetch_weights("vit_tiny_patch16_224")  # the hub answers, but has no such file
    assert path is None
    assert "model.safetensors" in reason
    stop(server)
    start = time.monotonic()
    path, reason = fetch_weights(MODEL)
    assert path is None
    assert REPOSITORY in reason
    assert "\n" not in reason
    assert time.monotonic() - start < 10  # without the retries of the hub's library, which take 23 s
    assert capfd.readouterr() == ("", "")
    with pytest.raises(ValueError, match=rf"timm:{MODEL}@FILE$"):
        build_extractor(f"timm:{MODEL}")


@pytest.mark.parametrize("model_name", ["no_such_model", "test_vit.no_such_weights", "test_vit4"])
def test_models_without_weights_on_the_hub_are_refused(model_name):
    with pytest.raises(ValueError, match="no weights on the hub"):
        build_extractor(f"timm:{model_name}")


@pytest.mark.parametrize("spec", ["", "dino", "sift:3", "timm", "timm:", "timm:x@", "mae:run", "timm:@file"])
def test_unknown_features_name_what_is_accepted(spec):
    with pytest.raises(ValueError, match=r"auto, sift, pixels, timm:MODEL, timm:MODEL@FILE$"):
        build_extractor(spec)


def test_extractors_refuse_images_of_another_size_or_type():
    for images in (random_images(2, 15), random_images(2, 16).float(), random_images(2, 16)[:, :1]):
        with pytest.raises(ValueError, match=r"expected uint8 images \(B, 3, 16, 16\)"):
            PixelFeatures()(images)


def test_pixels():
    images = random_images(3, 16)
    extractor, _ = build_extractor("pixels")
    np.testing.assert_allclose(extractor(images), images.numpy().reshape(3, 768) / 255, atol=1e-7)


@pytest.mark.parametrize("source", [32, 64])
def test_sift_vectors_of_a_texture_family_are_close(source):
    """Also from 32-pixel sources, which the stream enlarges."""
    rng = np.random.default_rng(0)

    def decoded(images):
        small = resized([np.rint(255 * image).astype(np.uint8) for image in images], source)
        return torch.from_numpy(resized(list(small.transpose(0, 2, 3, 1)), 96))

    extractor = SiftFeatures()
    extractor.fit(decoded([stripes(rng) for _ in range(60)]))
    shifted = []
    for _ in range(6):  # eight places in a larger picture of each family's texture
        texture = stripes(rng, 128)
        shifted += [texture[top : top + 64, left : left + 64] for top, left in rng.integers(0, 64, (8, 2))]
    vectors = extractor(decoded(shifted))
    assert vectors.shape == (48, 1024)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-4)
    # Normalised inside each word: every word that occurs weighs the same.
    weights = np.linalg.norm(vectors.reshape(48, 32, 32), axis=2)
    np.testing.assert_allclose(weights / weights.max(1, keepdims=True), weights > 0, atol=1e-3)
    likeness = vectors @ vectors.T
    same = np.kron(np.eye(6, dtype=bool), np.ones((8, 8), bool))
    np.fill_diagonal(likeness, np.nan)
    within, between = np.where(same, likeness, np.nan), np.where(same, np.nan, likeness)
    assert (np.nanmean(within, axis=1) > np.nanmean(between, axis=1) + 0.1).all()
    nearest = np.nan_to_num(likeness, nan=-2).argmax(1)
    assert (nearest // 8 == np.arange(48) // 8).mean() > 0.9


def test_sift_is_deterministic_for_any_batches_and_needs_fit():
    images = torch.from_numpy(resized(collection(0, 4, 10)[0], 96))
    with pytest.raises(RuntimeError, match="fit"):
        SiftFeatures()(images)
    one, two, other = SiftFeatures(5), SiftFeatures(5), SiftFeatures(6)
    for extractor in (one, two, other):
        extractor.fit(images)
    whole = one(images)
    np.testing.assert_array_equal(whole, two(images))
    np.testing.assert_allclose(whole, np.concatenate([one(part) for part in images.split(7)]), atol=1e-5)
    assert np.abs(whole - other(images)).max() > 0.01  # the seed is used


def test_sift_of_flat_images_is_finite():
    flat = torch.full((2, 3, 96, 96), 128, dtype=torch.uint8)
    extractor = SiftFeatures()
    extractor.fit(flat)
    assert np.isfinite(extractor(flat)).all()


def test_heavy_libraries_are_imported_only_when_used():
    code = "import sys, mimcl.curriculum.features; print([m for m in ('cv2', 'faiss', 'timm') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
