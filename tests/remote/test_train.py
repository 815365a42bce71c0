"""`mimcl train` on remote data: draws, losses and weights equal those on local files despite faults."""

import pytest
from helpers.small_runs import FEW_PATCHES, metrics, train, weights
from helpers.typed import mimcl

pytestmark = pytest.mark.slow

STEPS = 8


@pytest.fixture(scope="module")
def local(shards, tmp_path_factory):
    """A run on the local files."""
    folder = tmp_path_factory.mktemp("local")
    with pytest.MonkeyPatch.context() as patch:
        assert mimcl(patch, folder, *train("run", FEW_PATCHES, steps=STEPS), "--data", str(shards)) == 0
    return folder / "run"


FAULTS = [
    dict(path=r".", what="delay", value=0.02),
    dict(path=r"000000\.tar", what="status", value=500, times=3),
    dict(path=r"000001\.tar", what="reset", times=2, method="GET"),
    dict(path=r"000002\.tar", what="truncate", times=2, method="GET"),
    dict(path=r"000000\.tar", what="corrupt", times=1, method="GET"),
    dict(path=r"dataset|arrow|prototypes", what="status", value=503, times=2),
    dict(path=r"\.tar", what="short", times=1, method="GET"),
]


def test_training_despite_faults_equals_that_on_local_files(server, local, tmp_path, monkeypatch):
    server.inject(*FAULTS)
    assert mimcl(monkeypatch, tmp_path, *train("run", FEW_PATCHES, steps=STEPS), "--data", server.root) == 0
    run = tmp_path / "run"
    assert weights(run) == weights(local)
    assert (run / "draw_counts.npy").read_bytes() == (local / "draw_counts.npy").read_bytes()
    of_reads = {"read_amplification", "requests", "shards_touched"}  # metrics of remote reads
    lines = metrics(run)
    assert any(of_reads <= line.keys() for line in lines)
    without = [{key: value for key, value in line.items() if key not in of_reads} for line in lines]
    assert without == metrics(local)
    assert len(server.requests()) > 3


def test_a_run_keeps_no_secrets_of_the_url(web, tmp_path, monkeypatch, capfd):
    root = web.root.replace("http://", "http://me:s3cret@") + "?sig=s3cret"
    words = [*train("run", FEW_PATCHES, steps=STEPS), "--set", "report=true"]
    assert mimcl(monkeypatch, tmp_path, *words, "--data", root) == 0
    assert mimcl(monkeypatch, tmp_path, "inspect", "run") == 0
    out, err = capfd.readouterr()
    files = {path.relative_to(tmp_path).as_posix(): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert "run/report.html" in files
    assert f"root: {web.root}" in files["run/config.yaml"].decode()
    assert [name for name, content in files.items() if b"s3cret" in content] == []
    assert "s3cret" not in out + err
