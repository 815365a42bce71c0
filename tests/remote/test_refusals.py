"""Problems of remote data are errors of one line that say what to do; hopeless requests are not retried."""

import builtins
import dataclasses
import time

import fsspec
import numpy as np
import pytest
from helpers.full_disk import limit_file_size
from helpers.hub import use_hub
from helpers.typed import mimcl

from mimcl.cli.config import Config
from mimcl.cli.run.training_data import load_difficulty
from mimcl.cli.suggest import prototypes_build
from mimcl.curriculum.config import CurriculumConfig
from mimcl.pipeline.cache_dir import cache_dir
from mimcl.pipeline.files import DataError
from mimcl.pipeline.index import ShardIndex
from mimcl.pipeline.open_store import open_store
from mimcl.pipeline.remote import clients
from mimcl.pipeline.remote import remote_folder as remote
from mimcl.pipeline.remote.remote_folder import RemoteFolder
from mimcl.pipeline.remote.shard_cache import ShardCache, cache_limit
from mimcl.pipeline.remote.urls import joined, shown, url_of
from mimcl.pipeline.store import Defect

pytestmark = pytest.mark.slow


def refused(act) -> str:
    with pytest.raises(DataError) as error:
        act()
    assert "\n" not in str(error.value)
    return str(error.value)


def read(root, ids=(0,)):
    return open_store(ShardIndex.load(root)).read(np.array(ids))


@pytest.mark.parametrize("status", [401, 403])
def test_refused_credentials(server, status):
    server.inject(dict(path=r"\.tar", what="status", value=status))
    message = refused(lambda: read(server.root))
    assert f"{server.root}/train-000000.tar: credentials refused" in message
    assert ("AWS_PROFILE" if server.root.startswith("s3") else "~/.netrc") in message
    assert len(server.requests()) <= 2


def test_no_credentials_at_all(bucket, monkeypatch, tmp_path):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    assert "AWS_ACCESS_KEY_ID" in refused(lambda: ShardIndex.load(bucket.root))


def test_a_shard_that_does_not_exist(web):
    web.inject(dict(path=r"000001\.tar", what="status", value=404))
    index = ShardIndex.load(web.root)
    row = int(np.flatnonzero(index.shard == 1)[0])
    assert f"{web.root}/train-000001.tar not found (HTTP 404)" in refused(
        lambda: open_store(index).read(np.array([row]))
    )


def test_no_data_set_there(server):
    assert "dataset.json" in refused(lambda: ShardIndex.load(server.root + "/nothing"))
    assert "third" in refused(lambda: ShardIndex.load(server.root, "third"))


def test_retries_end_with_a_clear_error(server):
    server.inject(dict(path=r"\.tar", what="status", value=500))
    message = refused(lambda: read(server.root))
    assert f"{server.root}/train-000000.tar" in message
    assert "8 attempts" in message


def test_timeouts_are_retried_and_reported(server, monkeypatch):
    short = dataclasses.replace(remote.RETRY_POLICY, read_timeout=0.3, max_attempts=2)
    index = ShardIndex.load(server.root)
    monkeypatch.setattr(remote, "RETRY_POLICY", short)
    server.inject(dict(path=r"\.tar", what="delay", value=30))
    start = time.monotonic()
    message = refused(lambda: open_store(index).read(np.array([0])))
    assert "2 attempts" in message
    assert "imeout" in message
    assert time.monotonic() - start < 8  # less than the 10 that two attempts with the usual timeout would take
    server.inject(dict(path=r"\.tar", what="delay", value=30, times=1))
    assert len(open_store(index).read(np.array([0]))[0]) == index.nbytes[0]


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1:1/shards", "http://no-such-host.invalid/shards", "s3://bucket/x", "hf://datasets/user/set"],
)
def test_no_connection_is_said_before_the_retries(url, monkeypatch, caplog):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://no-such-host.invalid")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "tester")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    use_hub(monkeypatch, "http://no-such-host.invalid")
    assert "8 attempts" in refused(lambda: ShardIndex.load(url))
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("mimcl")]
    assert [line.partition(" (")[0] for line in lines] == [f"{url}/dataset.json: no connection"]


@pytest.mark.parametrize("status", [400, 405, 409, 416, 451, 501, 505])
def test_permanent_statuses_are_not_retried(server, status):
    server.inject(dict(path=r"\.tar", what="status", value=status))
    assert "request refused" in refused(lambda: read(server.root))
    assert len(server.requests()) <= 2  # the library tries HEAD, then GET


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_transient_statuses_are_retried(server, status):
    server.inject(dict(path=r"\.tar", what="status", value=status, times=4))
    assert len(read(server.root)[0]) > 0
    assert len(server.requests()) > 4


def test_a_server_without_sizes_is_refused_at_once(web):
    web.inject(dict(path=r"dataset", what="endless"))
    message = refused(lambda: ShardIndex.load(web.root))
    assert f"{web.root}/dataset.json: the server reports no size (neither Content-Length nor Content-Range)" in message
    assert len(web.requests("dataset")) == 2


def test_a_shard_that_changed_is_refused(server, shards):
    store = open_store(ShardIndex.load(server.root))
    store.read(np.array([0]))
    server.inject(dict(path=r"\.tar", what="corrupt"), dict(path=r"\.tar", what="etag"))
    message = refused(lambda: store.read(np.array([1])))
    assert f"{server.root}/train-000000.tar changed" in message


def test_a_shard_of_another_size_is_refused(web, shards, tmp_path):
    index = ShardIndex.load(web.root)
    index.shards[0]["bytes"] += 512
    assert "the index says" in refused(lambda: open_store(index).read(np.array([0])))


def test_a_sample_that_never_matches_is_bad_and_not_a_transport_error(web):
    index = ShardIndex.load(web.root)
    store = open_store(index)
    web.inject(dict(path=r"\.tar", what="corrupt", method="GET"))
    (found,) = store.read(np.array([2]))
    assert found == Defect(index.key(2), "train-000000.tar", "its bytes do not match the index")
    asked = len(web.requests())
    assert store.read(np.array([2])) == [found]  # remembered
    store.prefetch(store.plan_reads(np.array([2])))
    while store._prefetch_pool._threads:
        time.sleep(0.01)
    assert len(web.requests()) == asked


@pytest.mark.parametrize("room", [0, 20_000])
def test_a_full_cache_disk(web, room):
    index = ShardIndex.load(web.root)
    rows = np.arange(index.samples)
    with limit_file_size(room):
        message = refused(lambda: open_store(index).read(rows))
    assert f"the cache {cache_dir() / 'shards'} cannot be written" in message
    assert "MIMCL_CACHE" in message
    assert all(len(data) == index.nbytes[row] for row, data in enumerate(open_store(index).read(rows)))


def test_a_full_disk_while_the_index_is_fetched(web):
    with limit_file_size(100):
        message = refused(lambda: ShardIndex.load(web.root))
    assert "cannot be written" in message
    assert "MIMCL_CACHE" in message
    assert not list(cache_dir().rglob("*.tmp"))
    ShardIndex.load(web.root)


def test_an_index_that_is_damaged_in_transit_or_on_disk_is_fetched_again(web):
    web.inject(dict(path=r"train\.arrow", what="corrupt", times=1, method="GET"))
    index = ShardIndex.load(web.root)
    path = index.root / "train.arrow"
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.unlink()
    path.write_bytes(content)
    assert ShardIndex.load(web.root).fingerprint == index.fingerprint
    web.inject(dict(path=r"val\.arrow", what="corrupt", method="GET"))
    assert "checksum" in refused(lambda: ShardIndex.load(web.root, "val"))  # ours or botocore's


def test_missing_prototypes_are_refused(server):
    index = ShardIndex.load(server.root)
    message = refused(lambda: index.prototypes_folder("other"))
    assert f"{server.root}/prototypes/other" in message
    config = Config(curriculum=CurriculumConfig(name="proto", prototypes="other"))
    asked = refused(lambda: load_difficulty(config.curriculum, index, config.seed))
    assert asked == f"{message}; run `{prototypes_build(server.root, 'other')}`"


@pytest.mark.parametrize("text", ["none", "0", "-1", "nan"])
def test_an_invalid_cache_limit_is_refused(monkeypatch, text):
    monkeypatch.setenv("MIMCL_CACHE_GB", text)
    assert "MIMCL_CACHE_GB is" in refused(cache_limit)


def test_a_cache_folder_that_cannot_be_created_is_refused(monkeypatch, tmp_path, web):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MIMCL_CACHE", str(tmp_path / "file"))
    assert "MIMCL_CACHE" in refused(lambda: ShardIndex.load(web.root))
    with pytest.raises(DataError):
        ShardCache().open("key", 10, 1)


@pytest.mark.parametrize(
    ("url", "library"),
    [("s3://b/x", "s3fs"), ("gs://b/x", "gcsfs"), ("http://h/x", "aiohttp"), ("hf://d/x", "huggingface_hub")],
)
def test_a_missing_library(monkeypatch, url, library):
    import sys

    real = builtins.__import__

    def without(name, *arguments, **options):
        if name.partition(".")[0] == library:
            raise ImportError(name)
        return real(name, *arguments, **options)

    for name in [name for name in sys.modules if name.partition(".")[0] in (library, "fsspec")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", without)
    clients._make_client.cache_clear()
    message = refused(lambda: RemoteFolder(url))
    assert f"needs {library}: pip install 'mimcl[" in message


@pytest.mark.parametrize(
    "url", ["s3://bucket/x", "gs://bucket/x", "hf://datasets/user/set", "http://h/x", "https://h/x"]
)
def test_every_scheme_opens_without_a_connection(url, monkeypatch):
    monkeypatch.setitem(fsspec.config.conf, "gs", {"token": "anon"})  # what FSSPEC_GS_TOKEN sets
    folder = RemoteFolder(url)
    assert folder.address("train-000000.tar") == f"{url}/train-000000.tar"


def test_addresses():
    secret = "https://me:pass@host:81/sets/a/?sig=abc"
    assert url_of(secret) == secret
    assert joined(secret, "dataset.json") == "https://me:pass@host:81/sets/a/dataset.json?sig=abc"
    assert shown(secret) == "https://host:81/sets/a/"
    assert url_of("s3://bucket/a/") == "s3://bucket/a"
    assert url_of("a/b") is None
    for bad in ("s3://", "http://h::file:///etc", "s3:/b/x", "ftp://h/x"):
        refused(lambda bad=bad: url_of(bad))


def test_secrets_are_not_printed(web, capfd, monkeypatch, tmp_path):
    root = web.root.replace("http://", "http://me:hidden@") + "?sig=hidden"
    ShardIndex.load(root)
    web.inject(dict(path=r".", what="status", value=500))
    assert "hidden" not in refused(lambda: ShardIndex.load(root))
    assert mimcl(monkeypatch, tmp_path, "inspect", root) == 1
    out, err = capfd.readouterr()
    assert "hidden" not in out + err
    assert "hidden" not in refused(lambda: ShardIndex.load("http://me:hidden@127.0.0.1:1/x?sig=hidden"))


def test_processes_that_fail_together_do_not_retry_together(monkeypatch):
    def waits(rank):
        monkeypatch.setenv("RANK", str(rank))
        return [remote.RETRY_POLICY.wait("http://host/shards dataset.json", attempt) for attempt in range(4)]

    assert waits(0) == waits(0)
    assert len({wait for rank in range(8) for wait in waits(rank)}) == 32
    assert all(0.01 * 2**n <= wait <= 0.03 * 2**n for rank in range(8) for n, wait in enumerate(waits(rank)) if n < 2)
