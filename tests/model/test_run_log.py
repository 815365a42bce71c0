"""metrics.jsonl and TensorBoard: a temporarily full disk, and what a resume drops."""

import json
import os
import time

import pytest
from helpers.full_disk import limit_file_size
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mimcl.model.jsonl import JsonlWriter, keep_lines
from mimcl.model.run_log import RunLog, TensorBoard


@pytest.fixture
def warnings():
    return []


def opened(folder, draw, warnings):
    return RunLog(folder, draw, warnings.append, [TensorBoard(folder, warnings.append, draw)])


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def written(numbers):
    return [{"step": n, "draw": 8 * n, "loss": n / 2} for n in numbers]


def test_each_event_is_a_line_and_nonfinite_values_are_null(tmp_path, warnings):
    log = opened(tmp_path, 0, warnings)
    log.write({"step": 1, "draw": 8, "loss": float("nan"), "lr": 0.5})
    log.write({"window": 1, "draw": 8, "temperature": float("inf"), "digest": "ab"})
    log.close()
    assert lines_of(tmp_path / "metrics.jsonl") == [
        {"step": 1, "draw": 8, "loss": None, "lr": 0.5},
        {"window": 1, "draw": 8, "temperature": None, "digest": "ab"},
    ]
    assert warnings == []


@pytest.mark.parametrize("room", range(100, 136, 5))
def test_a_temporarily_full_disk_loses_no_line(tmp_path, warnings, room):
    path = tmp_path / "metrics.jsonl"
    lines = JsonlWriter(path, warnings.append)
    for row in written(range(2)):
        lines.write([row])
    with limit_file_size(room):
        for row in written(range(2, 9)):
            lines.write([row])
    assert path.stat().st_size <= room
    (line,) = warnings
    assert line.startswith(f"{path} cannot be written (File too large)")
    lines.write(written([9]))
    assert lines_of(path) == written(range(10))
    with limit_file_size(0):
        lines.write(written([10]))
    assert len(warnings) == 2  # full again


def scalars(folder, tag):
    found = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload().Scalars(tag)
    return [(event.step, event.value) for event in found]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("room", [0, 20, 300])
def test_a_full_disk_ends_tensorboard_with_one_warning_and_a_resume_starts_it_again(tmp_path, warnings, room):
    with limit_file_size(room):
        log = opened(tmp_path, 0, warnings)
        for row in written(range(50)):
            log.write(row)
    assert {line.partition(" cannot")[0] for line in warnings} == {
        f"TensorBoard events in {tmp_path}",
        f"{tmp_path}/metrics.jsonl",
    }
    log.write(written([50])[0])
    log.close()
    assert len(warnings) == 2
    assert lines_of(tmp_path / "metrics.jsonl") == written(range(51))
    log = opened(tmp_path, 8, warnings)
    log.write(written([2])[0])
    log.close()
    assert len(warnings) == 2
    assert scalars(tmp_path, "loss") == [(8 * n, n / 2) for n in (range(3) if room == 300 else [2])]


def test_tensorboard_at_a_path_that_is_not_utf8(tmp_path, warnings):
    folder = tmp_path / os.fsdecode(b"raw\xe9")
    log = opened(folder, 0, warnings)
    for row in written(range(3)):
        log.write(row)
    log.close()
    assert not warnings
    assert lines_of(folder / "metrics.jsonl") == written(range(3))
    readable = folder.rename(tmp_path / "renamed")
    assert scalars(readable, "loss") == [(8 * n, n / 2) for n in range(3)]


def test_tensorboard_shows_no_step_twice_after_a_resume(tmp_path, warnings):
    for position, steps in ((0, range(6)), (24, range(4, 9))):
        log = opened(tmp_path, position, warnings)
        for row in written(steps):
            log.write(row)
        log.close()
        time.sleep(1)  # the order of event files goes by the seconds in their names
    assert scalars(tmp_path, "loss") == [(8 * n, n / 2) for n in range(9)]


def test_lines_of_steps_that_will_be_repeated_are_dropped(tmp_path, warnings):
    log = opened(tmp_path, 0, warnings)
    for row in ({"window": 0, "draw": 0}, {"step": 2, "draw": 16}, {"window": 1, "draw": 16}, {"step": 3, "draw": 24}):
        log.write(row)
    log.close()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 1, "dra')  # killed
    log = opened(tmp_path, 16, warnings)
    log.write({"window": 1, "draw": 16, "again": 1})
    log.close()
    assert lines_of(tmp_path / "metrics.jsonl") == [
        {"window": 0, "draw": 0},
        {"step": 2, "draw": 16},
        {"window": 1, "draw": 16, "again": 1},
    ]


@pytest.mark.parametrize(
    "torn", [b'{"draw": 1', b"\x00\x00\x00", b"[1]", b'{"step": 3}', b'{"draw": "1"}', b"\xff{", b"", b"3"]
)
def test_incomplete_lines_and_lines_without_a_draw_are_dropped(tmp_path, torn):
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b'{"draw": 1, "a": 1}\n' + torn + b'\n{"draw": 2}\n' + torn)
    assert keep_lines(path, lambda values: True) == [{"draw": 1, "a": 1}, {"draw": 2}]
    assert path.read_bytes() == b'{"draw": 1, "a": 1}\n{"draw": 2}\n'
    assert keep_lines(path, lambda values: values["draw"] > 1) == [{"draw": 2}]
    assert keep_lines(tmp_path / "none", lambda values: True) == []
    assert [p.name for p in tmp_path.iterdir()] == ["lines.jsonl"]
