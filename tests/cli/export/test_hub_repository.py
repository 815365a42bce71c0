"""`mimcl export --push`: the real client uploads to a stand-in hub, from which timm and transformers load the model."""

import json
import re
import socket
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import timm
import torch
import transformers
from helpers.model_hub import started_model_hub, use_model_hub
from helpers.run_folders import step_line, write_run
from helpers.typed import error_line, mimcl
from huggingface_hub import HfApi, ModelCard, hf_hub_download
from safetensors.torch import save_file

from mimcl.cli.config import override
from mimcl.cli.encoders.encoder import Encoder
from mimcl.cli.encoders.finetuned import FineTuned
from mimcl.cli.encoders.restore import restore_model
from mimcl.cli.export import export as export_module
from mimcl.cli.export import hub_repository
from mimcl.cli.export.export import export
from mimcl.cli.recipes import RECIPES
from mimcl.model import checkpoint
from mimcl.model.export import timm_arguments, timm_classifier
from mimcl.model.mae import patchify
from mimcl.pipeline.files import DataError

pytestmark = pytest.mark.slow  # starts a server

CLASSES = ["ant", "bee", "cat"]
THEIRS = {
    "timm": timm,
    "ViTModel": transformers.ViTModel,
    "ViTMAEForPreTraining": transformers.ViTMAEForPreTraining,
    "AutoModelForImageClassification": transformers.AutoModelForImageClassification,
}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """run/ with a checkpoint of random weights, and classifier/ in timm's layout."""
    folder = tmp_path_factory.mktemp("home")
    small = {"data.image_size": 32, "model.decoder_depth": 1, "model.decoder_width": 32}
    config = override(RECIPES["cpu_small"](), small)
    torch.manual_seed(0)
    write_run(folder / "run", [step_line(1, 1.0)], recipe=config)
    meta = {"position": 64, "samples": 24, "config": asdict(config), "fingerprints": {"index": "0" * 32}}
    checkpoint.save(folder / "run" / "checkpoints", 1, restore_model(config, None).state_dict(), {}, meta, keep_last=1)
    name, arguments = timm_arguments(config.model, 32, len(CLASSES))
    tensors = timm.create_model(name, **arguments).state_dict()
    tensors, described = timm_classifier(config.model, 32, tensors, CLASSES, 0.875)
    (folder / "classifier").mkdir()
    save_file(tensors, folder / "classifier" / "model.safetensors", {"format": "pt"})
    (folder / "classifier" / "config.json").write_text(json.dumps(described))
    return folder


@pytest.fixture(scope="module")
def _hub():
    with started_model_hub() as hub:
        yield hub


@pytest.fixture
def hub(_hub, home, monkeypatch, tmp_path):
    """An empty hub; the user's token is known."""
    _hub.set()
    use_model_hub(monkeypatch, _hub.url)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(home)
    return _hub


@pytest.fixture
def images():
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(3))


def push(monkeypatch, home, *words) -> int:
    return mimcl(monkeypatch, home, "export", "run", "--push", "mine", *words)


@torch.no_grad()
def tokens_of(home, images):
    model = Encoder.load(home / "run").model()
    return model.encode(model.embed(patchify(images, model.patch_size)))


@torch.no_grad()
def test_timm_loads_the_encoder_from_the_hub(hub, home, images, monkeypatch, capsys):
    assert push(monkeypatch, home, "--private") == 0
    difference, uploaded, call = capsys.readouterr().out.splitlines()
    assert difference.startswith("maximum difference: ")
    assert uploaded == f"uploaded to {hub.url}/ada/mine: README.md, config.json, model.safetensors"
    model = eval(call, THEIRS).eval()
    torch.testing.assert_close(model.forward_features(images), tokens_of(home, images), atol=1e-5, rtol=0)
    assert tuple(timm.data.resolve_model_data_config(model)["input_size"]) == (3, 32, 32)
    repository = hub.repositories()["ada/mine"]
    assert repository["private"] is True
    assert repository["commits"] == ["Upload run, exported by mimcl"]
    asked = hub.requests()
    assert any(line.startswith("PUT /storage/") for line in asked)  # the weights, as a large file
    assert asked.index("POST /api/validate-yaml") < asked.index("POST /api/models/ada/mine/commit/main")
    assert sorted(path.name for path in home.iterdir()) == ["classifier", "run"]


@torch.no_grad()
def test_transformers_loads_both_models_from_the_hub(hub, home, images, monkeypatch, capsys):
    assert push(monkeypatch, home, "--format", "hf") == 0
    *_, vit, vit_mae = capsys.readouterr().out.splitlines()
    tokens = eval(vit, THEIRS).eval()(images).last_hidden_state
    torch.testing.assert_close(tokens, tokens_of(home, images), atol=1e-5, rtol=0)
    assert eval(vit_mae, THEIRS).eval()(images).loss > 0
    assert hub.repositories()["ada/mine"]["private"] is False


@pytest.mark.parametrize("target", ["timm", "hf", "safetensors"])
@torch.no_grad()
def test_a_classifier_is_loaded_from_the_hub(hub, home, images, target):
    found = export(home / "classifier", push="ada/kinds", target=target, classifier=True)
    (call,) = found.hub_calls
    known = {"FineTuned": FineTuned, "hf_hub_download": hf_hub_download, "Path": Path}
    model = eval(call, THEIRS | known)
    ours = FineTuned.load(home / "classifier").weights.model()(images)
    theirs = (model.model() if target == "safetensors" else model.eval())(images)
    torch.testing.assert_close(getattr(theirs, "logits", theirs), ours, atol=1e-5, rtol=0)
    assert (found.folder, found.calls, found.url) == (None, (), f"{hub.url}/ada/kinds")


def test_an_export_into_a_folder_is_uploaded_as_it_is(hub, home, tmp_path, monkeypatch, capsys):
    assert push(monkeypatch, home, "--out", str(tmp_path / "out")) == 0
    assert capsys.readouterr().out.startswith(f"wrote {tmp_path}/out/: README.md, config.json, model.safetensors\n")
    for name in hub.repositories()["ada/mine"]["files"]:
        assert (tmp_path / "out" / name).read_bytes() == Path(hf_hub_download("ada/mine", name)).read_bytes()


def test_the_card_names_the_call_and_keeps_the_licence_of_the_repository(hub, home, monkeypatch, capsys):
    assert push(monkeypatch, home) == 0
    card = ModelCard.load("ada/mine")
    assert (card.data.library_name, card.data.pipeline_tag) == ("timm", "image-feature-extraction")
    assert "mimcl" in card.data.tags
    assert card.data.license is None
    *_, call = re.findall(r"```python\n(.+?)\n```", card.content, re.S)
    assert call == 'timm.create_model("hf-hub:ada/mine", pretrained=True)'
    assert call in capsys.readouterr().out
    card.data.license = "mit"
    HfApi().upload_file(path_or_fileobj=str(card).encode(), path_in_repo="README.md", repo_id="ada/mine")
    assert push(monkeypatch, home, "--format", "safetensors") == 0
    card = ModelCard.load("ada/mine")
    assert (card.data.license, card.data.library_name) == ("mit", "mimcl")
    assert len(hub.repositories()["ada/mine"]["commits"]) == 3


def test_a_public_repository_is_not_taken_for_a_private_one(hub, home, monkeypatch, capsys):
    assert push(monkeypatch, home) == 0
    capsys.readouterr()
    assert push(monkeypatch, home, "--private") == 2
    assert f"--private: {hub.url}/ada/mine exists and is public" in error_line(capsys.readouterr().err)
    assert len(hub.repositories()["ada/mine"]["commits"]) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--private", "--out", "new"], "--private needs --push REPO"),
        (["--push", "a/b/c"], "--push is 'a/b/c'; it must be NAME or USER/NAME"),
        (["--push", "a..b"], "--push is 'a..b'; it must be NAME or USER/NAME"),
        (["--push", ""], "--push is ''; it must be NAME or USER/NAME"),
    ],
)
def test_a_call_that_cannot_work_asks_the_hub_nothing(hub, home, monkeypatch, capsys, words, message):
    assert mimcl(monkeypatch, home, "export", "run", *words) == 2
    assert message in error_line(capsys.readouterr().err)
    assert hub.requests() == []


def refused_before_the_export(monkeypatch, home, capsys, *words) -> str:
    """Push, which must end before the weights are loaded; return the error."""
    monkeypatch.setattr("mimcl.cli.export.job.export_job", None)
    assert push(monkeypatch, home, *words) in (1, 2)
    return error_line(capsys.readouterr().err)


def test_without_a_token(hub, home, monkeypatch, capsys):
    monkeypatch.delenv("HF_TOKEN")
    line = refused_before_the_export(monkeypatch, home, capsys)
    assert line == f"mimcl: --push needs a token of {hub.url}; set HF_TOKEN, or run `hf auth login`"


def test_a_token_that_the_hub_does_not_know(hub, home, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    line = refused_before_the_export(monkeypatch, home, capsys)
    assert f"{hub.url} refused the token (HTTP 401" in line
    assert "hf_other" not in line


def test_offline(hub, home, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    line = refused_before_the_export(monkeypatch, home, capsys)
    assert line == "mimcl: --push needs the hub, but HF_HUB_OFFLINE is set; unset it"


def test_without_the_library(hub, home, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert "pip install 'mimcl[hf]'" in refused_before_the_export(monkeypatch, home, capsys)


def test_a_hub_that_nobody_serves(hub, home, monkeypatch, capsys):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    use_model_hub(monkeypatch, url)
    line = refused_before_the_export(monkeypatch, home, capsys)
    assert line.startswith(f"mimcl: {url} cannot be reached (Connect")
    assert line.endswith("check the network, and HF_ENDPOINT")


def test_a_hub_that_does_not_answer(hub, home, monkeypatch, capsys):
    monkeypatch.setattr(hub_repository, "_TIMEOUTS_S", (1, 0.2, 1, 1))
    hub.set(delay_s=2)
    assert f"{hub.url} cannot be reached (ReadTimeout" in refused_before_the_export(monkeypatch, home, capsys)


def test_another_users_name_is_refused_with_the_hubs_reason(hub, home, tmp_path, monkeypatch, capsys):
    words = ("export", "run", "--push", "bob/mine", "--out", str(tmp_path / "out"))
    assert mimcl(monkeypatch, home, *words) == 1
    line = error_line(capsys.readouterr().err)
    assert "refused the upload to bob/mine (HTTP 403: You don't have the rights" in line
    assert line.endswith(f"`hf upload bob/mine {tmp_path}/out` uploads {tmp_path}/out later")
    assert (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.parametrize("step", ["preupload", "objects/batch", "PUT /storage", "commit/main"])
def test_an_upload_that_fails_leaves_no_files(hub, home, monkeypatch, step):
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between the client's own retries
    hub.set(fails=step, status=500)
    with pytest.raises(DataError, match=r"uploading to ada/mine failed \(HTTP 500"):
        export("run", push="mine")
    repository = hub.repositories()["ada/mine"]
    assert (repository["commits"], repository["files"]) == ([], [])


def test_a_difference_uploads_nothing(hub, home, monkeypatch, capsys):
    monkeypatch.setattr(export_module, "LIMIT", 0)
    assert push(monkeypatch, home) == 1
    assert "nothing was written" in error_line(capsys.readouterr().err)
    assert hub.repositories() == {}
