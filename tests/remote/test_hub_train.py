"""`mimcl train` and `mimcl plan` on a hub that limits requests."""

import re

import pytest
from helpers.small_runs import FEW_PATCHES, train, weights
from helpers.typed import mimcl

from mimcl.cli.config import read_yaml
from mimcl.pipeline.index import ShardIndex

pytestmark = pytest.mark.slow

URL, STEPS = "hf://datasets/user/set", 8


@pytest.fixture(scope="module")
def local(shards, tmp_path_factory):
    """A run on the local files, in the order of the shards."""
    folder = tmp_path_factory.mktemp("local")
    words = [*train("run", FEW_PATCHES, steps=STEPS), "--data", str(shards), "--order", "shard"]
    with pytest.MonkeyPatch.context() as patch:
        assert mimcl(patch, folder, *words) == 0
    return folder / "run"


def shards_planned(out):
    """The number of requests that count, as plan and train print it."""
    (found,) = re.findall(r"counts those for addresses only: one for each of (\d+) shards", out)
    return int(found)


def test_a_run_makes_as_many_counted_requests_as_planned(hub, local, tmp_path, monkeypatch, capfd):
    words = train("run", FEW_PATCHES, steps=STEPS)
    flags = [word for word in words[1:-2] if word not in ("--decoder", "reference")]
    assert mimcl(monkeypatch, tmp_path, "plan", *flags, "--data", URL) == 0
    out = capfd.readouterr().out
    planned = shards_planned(out)
    assert "the hub allows 3,000 requests in 5 minutes" in out
    assert "draws follow the order of the shards, because requests are limited" in out
    assert "for whole shards, which the cache keeps" in out
    hub.set()
    assert mimcl(monkeypatch, tmp_path, *words, "--data", URL) == 0
    assert shards_planned(capfd.readouterr().out) == planned == len(hub.resolved()) == len(ShardIndex.load(URL).shards)
    run = tmp_path / "run"
    assert read_yaml(run / "config.yaml")["curriculum.order"] == "shard"
    assert weights(run) == weights(local)
    assert (run / "draw_counts.npy").read_bytes() == (local / "draw_counts.npy").read_bytes()


@pytest.mark.exhaustive
def test_the_watchdog_does_not_count_pauses(hub, local, tmp_path, monkeypatch, capfd):
    hub.set(limit=1, window_s=13, counted=r"\.tar")
    words = [*train("run", FEW_PATCHES, steps=STEPS), "--stall-timeout", "12", "--data", URL]
    assert mimcl(monkeypatch, tmp_path, *words) == 0  # waits three times
    assert len(hub.resolved(status=302)) == len(ShardIndex.load(URL).shards) >= 3
    assert weights(tmp_path / "run") == weights(local)
    lines = [line for line in capfd.readouterr().err.splitlines() if "asks to wait" in line]
    assert len(lines) == 1
    assert lines[0].startswith(f"mimcl: {hub.url} asks to wait ")


def test_a_cache_without_room_for_all_shards_gets_what_is_drawn(hub, local, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("MIMCL_CACHE_GB", "0.0009")
    words = train("run", FEW_PATCHES, steps=STEPS)
    assert mimcl(monkeypatch, tmp_path, *words, "--data", URL) == 0
    assert re.search(
        r"with MIMCL_CACHE_GB=1 or more the cache keeps all shards: about \d+ for [\d.]+ MB in all\n",
        capfd.readouterr().out,
    )
    assert weights(tmp_path / "run") == weights(local)


def test_an_order_that_was_asked_for_is_kept(hub, tmp_path, monkeypatch, capfd):
    words = [*train("run", FEW_PATCHES, steps=STEPS), "--order", "random"]
    assert mimcl(monkeypatch, tmp_path, *words, "--data", URL) == 0
    out = capfd.readouterr().out
    assert "--order random makes a request for nearly every image" in out
    assert re.search(r"requests: about [\d,]+ for \S+ [KM]B, minus what is cached", out)
    assert read_yaml(tmp_path / "run" / "config.yaml")["curriculum.order"] == "random"


def test_other_servers_keep_the_random_order(web, tmp_path, monkeypatch, capfd):
    assert mimcl(monkeypatch, tmp_path, *train("run", FEW_PATCHES, steps=2), "--data", web.root) == 0
    out = capfd.readouterr().out
    assert "requests: about" in out
    assert "the hub" not in out
    assert read_yaml(tmp_path / "run" / "config.yaml")["curriculum.order"] == "random"


def test_offline_mode_is_an_error_at_once(hub, tmp_path, monkeypatch, capfd):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert mimcl(monkeypatch, tmp_path, "inspect", URL) == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert line == (
        f"mimcl: {URL}/dataset.json: huggingface_hub is in offline mode; unset HF_HUB_OFFLINE, or give a local folder"
    )
    assert not hub.resolved(".")
