"""A packed data set on a web server and in a bucket, both behind a proxy that injects faults."""

import dataclasses

import numpy as np
import pytest
from helpers.hub import started_hub, use_hub
from helpers.images import write_classes, write_train_val
from helpers.servers import Proxy, started
from PIL import Image

from mimcl.curriculum.prototypes import build_prototypes
from mimcl.pipeline.remote import pause
from mimcl.pipeline.remote import remote_folder as remote
from mimcl.pipeline.remote import remote_store as remote_store
from mimcl.pipeline.shards import PackConfig, pack
from mimcl.pipeline.sources.folder import image_folder

SHORT_WAITS = dataclasses.replace(
    remote.RETRY_POLICY, first_wait=0.02, max_wait=0.1, connect_timeout=5.0, read_timeout=5.0
)


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    """A folder with several shards, 46 images and a prototype set."""
    root = tmp_path_factory.mktemp("remote")
    write_train_val(root / "src", {"ant": 20, "bee": 20}, {"ant": 3, "bee": 3})
    write_classes(root / "src" / "train", {"cat": 4}, seed=9)
    for number in range(3):  # large enough for several shards
        noise = np.random.default_rng(number).integers(0, 256, (500, 700, 3), np.uint8)
        Image.fromarray(noise).save(root / "src" / "train" / "cat" / f"noise{number}.png")
    out = root / "www" / "shards"
    description = pack(image_folder(root / "src"), out, PackConfig(shard_mb=1, workers=1), on_progress=lambda n: None)
    train = description["splits"]["train"]
    assert len(train["shards"]) >= 3
    features = np.random.default_rng(0).normal(size=(train["samples"], 6)).astype(np.float32)
    about = dict(features_name="pixels", features_reason="requested", index_fingerprint=train["fingerprint"])
    build_prototypes([features], 4, 0, **about).save(out / "prototypes" / "default")
    (out / "prototypes" / "default" / "gallery.png").write_bytes(b"a picture")
    return out


@pytest.fixture(scope="session")
def _web(shards):
    with started("files", str(shards.parent)) as url, started("proxy", url) as harmful:
        yield Proxy(harmful)


@pytest.fixture(scope="session")
def _bucket(shards):
    with started("s3") as url, started("proxy", url) as harmful:
        with pytest.MonkeyPatch.context() as patch:
            _s3_environment(patch, url)
            files = remote.RemoteFolder("s3://pictures")._client
            files.mkdir("pictures")
            files.put(str(shards), "pictures/shards", recursive=True)
        yield Proxy(harmful)


def _s3_environment(patch, url):
    patch.setenv("AWS_ENDPOINT_URL", url)
    patch.setenv("AWS_ACCESS_KEY_ID", "tester")
    patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    patch.setenv("AWS_DEFAULT_REGION", "us-east-1")


@pytest.fixture(scope="session")
def _hub(shards):
    with started_hub(shards) as hub:
        yield hub


@pytest.fixture
def hub(_hub, monkeypatch):
    """A stand-in for the hub with the shards at hf://datasets/user/set, without limits that matter."""
    _hub.set()
    use_hub(monkeypatch, _hub.url)
    return _hub


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    """Forget the pauses of other tests, which ask the same servers."""
    monkeypatch.setattr(pause, "_until", {})
    monkeypatch.setattr(pause, "_announced", set())
    monkeypatch.setattr(pause, "_latest", -float("inf"))


@pytest.fixture(autouse=True)
def short_waits(monkeypatch, tmp_path):
    """Retry after short waits, with an empty cache."""
    monkeypatch.setattr(remote, "RETRY_POLICY", SHORT_WAITS)
    monkeypatch.setattr(remote_store, "RETRY_POLICY", SHORT_WAITS)
    monkeypatch.setenv("MIMCL_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def web(_web):
    """The proxy in front of the web server; the shards are at `web.root`."""
    _web.inject()
    _web.root = f"{_web.url}/shards"
    return _web


@pytest.fixture
def bucket(_bucket, monkeypatch):
    """The proxy in front of S3; the shards are at `bucket.root`."""
    _bucket.inject()
    _s3_environment(monkeypatch, _bucket.url)
    _bucket.root = "s3://pictures/shards"
    return _bucket


@pytest.fixture(params=["web", "bucket"])
def server(request):
    return request.getfixturevalue(request.param)
