"""Without DALI the reference decodes, and one line says what to install; two builds of it are refused."""

import subprocess
import sys

import pytest
import torch

from mimcl.pipeline import dali_builds
from mimcl.pipeline.dali_builds import has_dali, how_to_install, is_for_torch, require_one_build
from mimcl.pipeline.decoder_choice import make_decoder
from mimcl.pipeline.files import DataError

SIZES = (32, 4, 2, 32**2)


@pytest.fixture
def without_dali(monkeypatch):
    monkeypatch.delitem(sys.modules, "mimcl.pipeline.dali", raising=False)
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    monkeypatch.setattr(dali_builds, "_NAMES", [])


def install(folder, monkeypatch, *names: str) -> None:
    """Put the metadata of these packages where Python finds it."""
    for name in names:
        (info := folder / f"{name.replace('-', '_')}-2.4.0.dist-info").mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 2.4.0\n")
    monkeypatch.syspath_prepend(folder)


def of_torch(monkeypatch, cuda: str | None) -> None:
    monkeypatch.setattr(torch.version, "cuda", cuda)


@pytest.mark.parametrize(("cuda", "extra"), [("13.2", "cuda13"), ("12.6", "cuda12"), (None, "cpu")])
def test_auto_is_the_reference_and_the_line_says_what_to_install(without_dali, monkeypatch, cuda, extra):
    of_torch(monkeypatch, cuda)
    decoder, line = make_decoder("auto", *SIZES)
    assert decoder.name == "reference"
    expected = f"pip install 'mimcl[{extra}]'"
    assert line == f"decoder reference; DALI is not installed: {expected} for faster decoding"


@pytest.mark.parametrize("name", ["dali-cpu", "dali-gpu"])
def test_a_named_decoder_that_needs_dali_is_refused(without_dali, monkeypatch, name):
    of_torch(monkeypatch, "13.0")
    with pytest.raises(DataError) as caught:
        make_decoder(name, *SIZES)
    needs = f"{name} needs DALI, which is not installed"
    assert str(caught.value) == f"{needs}: pip install 'mimcl[cuda13]'; or choose the decoder reference"


def test_the_reference_needs_no_advice(without_dali):
    assert make_decoder("reference", *SIZES)[1] == "decoder reference"


def test_where_dali_has_no_build_nothing_is_to_be_installed(without_dali, monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert how_to_install() is None
    assert make_decoder("auto", *SIZES)[1] == "decoder reference"
    with pytest.raises(DataError, match="needs DALI, which has no build for darwin; or choose the decoder reference"):
        make_decoder("dali-cpu", *SIZES)


@pytest.mark.parametrize(("cuda", "kept", "other"), [("13.0", 130, 120), ("12.6", 120, 130), (None, 130, 120)])
def test_two_builds_are_refused_and_the_one_for_torch_is_kept(tmp_path, monkeypatch, cuda, kept, other):
    install(tmp_path, monkeypatch, "nvidia-dali-cuda120", "nvidia-dali-cuda130")
    of_torch(monkeypatch, cuda)
    for name in ("auto", "dali-cpu"):
        with pytest.raises(DataError, match="nvidia-dali-cuda120 and nvidia-dali-cuda130 are installed") as caught:
            make_decoder(name, *SIZES)
        assert "\n" not in str(caught.value)
        assert f"pip uninstall nvidia-dali-cuda{other} && " in str(caught.value)
        assert str(caught.value).endswith(f"--force-reinstall --no-deps nvidia-dali-cuda{kept}")
    assert make_decoder("reference", *SIZES)[0].name == "reference"


def test_a_build_whose_files_are_gone_is_installed_again(tmp_path, monkeypatch):
    """As after the removal of another build."""
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    install(tmp_path, monkeypatch, "nvidia-dali-cuda130")
    assert not has_dali()
    assert how_to_install() == "pip install --force-reinstall --no-deps nvidia-dali-cuda130"


def test_a_folder_without_modules_is_not_dali(tmp_path):
    (tmp_path / "nvidia" / "dali").mkdir(parents=True)
    code = (
        "import sys\nfrom mimcl.pipeline.dali_builds import has_dali\n"
        f"for sys.path in ([{str(tmp_path)!r}], []):\n"
        "    for name in [name for name in sys.modules if name.split('.')[0] == 'nvidia']: del sys.modules[name]\n"
        "    print(has_dali())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["False", "False"], done.stderr


def test_the_installed_build_is_for_this_torch():
    require_one_build()
    assert has_dali()
    assert [is_for_torch(name) for name in dali_builds.dali_builds()] == [True]
