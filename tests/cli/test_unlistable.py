"""A folder that cannot be listed is named itself, and never counts as empty."""

from pathlib import Path

import pytest
from helpers.images import write_classes, write_flat
from helpers.unprivileged import no_privileges

from mimcl.cli.data.prototype_sets import prototype_set_folders
from mimcl.cli.data.verify import verify
from mimcl.cli.export.export import export
from mimcl.cli.inspect.checkpoint import bytes_in_folder
from mimcl.cli.inspect.inspect import inspect
from mimcl.cli.run.folder import open_run
from mimcl.model import checkpoint
from mimcl.model.checkpoint import CheckpointError
from mimcl.pipeline.files import DataError, list_folder
from mimcl.pipeline.shards import PackConfig, pack
from mimcl.pipeline.sources.folder import image_folder

CLOSED = 0o311  # may be entered, not listed


@pytest.fixture
def closed(tmp_path):
    """A folder to be closed with its parents; opened again in the end, so that it can be removed."""
    folders: list[Path] = []

    def close(folder: Path, mode: int = CLOSED) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(mode)
        folders.append(folder)
        return folder

    with no_privileges():
        yield close
    for folder in filter(Path.exists, folders):
        folder.chmod(0o755)


@pytest.mark.parametrize("mode", [CLOSED, 0])
def test_listing(tmp_path, closed, mode):
    (tmp_path / "file").touch()
    assert list_folder(tmp_path / "missing") == list_folder(tmp_path / "file") == []
    folder = closed(tmp_path / "folder", mode)
    assert list_folder(tmp_path) == [tmp_path / "file", folder]
    with pytest.raises(DataError, match=f"^{folder} cannot be listed: Permission denied$"):
        list_folder(folder)


def test_prototype_sets(tmp_path, closed):
    write_flat(tmp_path / "src", 3)
    shards = tmp_path / "shards"
    pack(image_folder(tmp_path / "src"), shards, PackConfig(workers=1), on_progress=id)
    assert prototype_set_folders(shards) == []
    folder = closed(shards / "prototypes")
    for look in (verify, inspect, prototype_set_folders):
        with pytest.raises(DataError, match=f"^{folder} cannot be listed: Permission denied$"):
            look(shards)


@pytest.mark.parametrize("mode", [CLOSED, 0])
def test_a_run_whose_checkpoints_cannot_be_listed_is_not_started_anew(tmp_path, closed, mode):
    run = tmp_path / "run"
    (run / "checkpoints" / "00000008").mkdir(parents=True)
    (run / "checkpoints" / "latest").write_text("00000008\n")
    (run / "config.yaml").write_text("recipe: cpu_small\n")
    folder = closed(run / "checkpoints", mode)
    with pytest.raises(CheckpointError, match=f"^{folder} cannot be listed: Permission denied$"):
        checkpoint.candidates(folder)
    with pytest.raises(CheckpointError, match=f"^{folder} cannot be listed: Permission denied$"):
        open_run("cpu_small", {}, run, resume=True)


def test_outputs(tmp_path, closed):
    folder = closed(tmp_path / "out")
    for make in (lambda: open_run("cpu_small", {}, folder), lambda: export(tmp_path, folder)):
        with pytest.raises(DataError, match=f"^{folder} cannot be listed: Permission denied$"):
            make()


def test_sizes_of_folders(tmp_path, closed):
    (tmp_path / "run" / "one").mkdir(parents=True)
    (tmp_path / "run" / "one" / "file").write_bytes(bytes(7))
    assert bytes_in_folder(tmp_path / "run") == 7
    folder = closed(tmp_path / "run" / "two")
    with pytest.raises(DataError, match=f"^{folder} cannot be listed: Permission denied$"):
        bytes_in_folder(tmp_path / "run")


def test_a_class_folder(tmp_path, closed):
    write_classes(tmp_path / "src", {"ant": 2, "bee": 2, "cow": 2})
    folder = closed(tmp_path / "src" / "bee")
    with pytest.raises(DataError, match=f"^{folder} cannot be listed: Permission denied$"):
        image_folder(tmp_path / "src")


def test_packing_where_one_may_not_write(tmp_path, closed):
    write_flat(tmp_path / "src", 3)
    folder = closed(tmp_path / "out", 0o555)
    message = r"failed \(Permission denied\); check the permissions, or free some space"
    for out in (folder / "deeper", folder):
        with pytest.raises(DataError, match=message):
            pack(image_folder(tmp_path / "src"), out, PackConfig(workers=1), on_progress=id)


def test_a_folder_that_cannot_be_removed_hides_no_error(tmp_path, closed):
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "text.jpg").write_text("no image")
    (tmp_path / "theirs" / "out").mkdir(parents=True)
    closed(tmp_path / "theirs", 0o555)
    with pytest.raises(DataError, match="files of train is a usable image"):
        pack(image_folder(tmp_path / "src"), tmp_path / "theirs" / "out", PackConfig(workers=1), on_progress=id)
