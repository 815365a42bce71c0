"""The thread that writes a shard: bytes and hash as written at once, and errors of the disk where they belong."""

import io
import tarfile
import threading

import pytest
import xxhash

from mimcl.pipeline import writer as module
from mimcl.pipeline.writer import ShardWriter, members_of, new_shard


def write(path, sizes):
    with new_shard(path) as writer:
        for number, size in enumerate(sizes):
            data = bytes([number % 251]) * size
            offset = writer.add(members_of(f"{number:09d}", "jpg", number, data))
            assert offset % 512 == 0
    return writer


@pytest.mark.parametrize("at_once", [1, 5000, 1 << 21])
@pytest.mark.parametrize("sizes", [[], [0], [1, 511, 512, 513], [70_000] * 40])
def test_all_is_written_in_order_whatever_is_written_at_once(tmp_path, monkeypatch, at_once, sizes):
    monkeypatch.setattr(module, "_WRITE_BYTES", at_once)
    monkeypatch.setattr(module, "_FLUSH_BYTES", 100_000)
    writer = write(tmp_path / "a.tar", sizes)
    content = (tmp_path / "a.tar").read_bytes()
    assert (writer.nbytes, writer.xxh128()) == (len(content), xxhash.xxh128_hexdigest(content))
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        images = [tar.extractfile(name).read() for name in tar.getnames() if name.endswith(".jpg")]
    assert images == [bytes([number % 251]) * size for number, size in enumerate(sizes)]


class Full(io.BytesIO):
    def write(self, data):
        raise OSError(28, "no room")


def test_an_error_of_the_thread_is_raised_and_leaves_neither_file_nor_thread(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_WRITE_BYTES", 1000)
    monkeypatch.setattr(module, "ShardWriter", lambda file: ShardWriter(Full()))
    with pytest.raises(OSError, match="no room"):
        write(tmp_path / "a.tar", [2000] * 10)
    assert list(tmp_path.iterdir()) == []
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("write")]
