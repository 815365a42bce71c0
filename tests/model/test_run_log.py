"""metrics.jsonl and TensorBoard on a disk that is full for a while, and what a resume drops."""

import json

import pytest
from helpers.full_disk import limit_file_size
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mimcl.model.jsonl import LineFile, keep_lines
from mimcl.model.run_log import RunLog, TensorBoard


@pytest.fixture
def told():
    return []


def opened(folder, draw, told):
    return RunLog(folder, draw, told.append, [TensorBoard(folder, draw, told.append)])


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def written(numbers):
    return [{"step": n, "draw": 8 * n, "loss": n / 2} for n in numbers]


def test_each_event_is_a_line_and_what_json_lacks_is_null(tmp_path, told):
    log = opened(tmp_path, 0, told)
    log.write({"step": 1, "draw": 8, "loss": float("nan"), "lr": 0.5})
    log.write({"window": 1, "draw": 8, "temperature": float("inf"), "digest": "ab"})
    log.close()
    assert lines_of(tmp_path / "metrics.jsonl") == [
        {"step": 1, "draw": 8, "loss": None, "lr": 0.5},
        {"window": 1, "draw": 8, "temperature": None, "digest": "ab"},
    ]
    assert told == []


@pytest.mark.parametrize("room", range(100, 136, 5))
def test_a_disk_full_for_a_while_tears_and_loses_no_line(tmp_path, told, room):
    path = tmp_path / "metrics.jsonl"
    lines = LineFile(path, told.append)
    for row in written(range(2)):
        lines.add([row])
    with limit_file_size(room):
        for row in written(range(2, 9)):
            lines.add([row])
    assert path.stat().st_size <= room
    (line,) = told
    assert line == f"{path} cannot be written (File too large); its lines are kept and tried again"
    lines.add(written([9]))
    assert lines_of(path) == written(range(10))
    with limit_file_size(0):
        lines.add(written([10]))
    assert len(told) == 2  # full again


def scalars(folder, tag):
    found = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload().Scalars(tag)
    return [(event.step, event.value) for event in found]


def test_tensorboard_gets_what_the_disk_did_not_take_for_a_while(tmp_path, told):
    log = opened(tmp_path, 0, told)
    log.write(written([0])[0])
    with limit_file_size(150):
        for row in written(range(1, 50)):
            log.write(row)
    assert {line.partition(" cannot")[0] for line in told} == {
        f"{tmp_path}/metrics.jsonl",
        f"{tmp_path}/events.out.tfevents.000000000000",
    }
    assert len(told) == 2
    log.close()
    assert lines_of(tmp_path / "metrics.jsonl") == written(range(50))
    assert scalars(tmp_path, "loss") == [(8 * n, n / 2) for n in range(50)]


def test_tensorboard_drops_what_is_repeated_after_a_resume(tmp_path, told):
    for position, steps in ((0, range(6)), (24, range(4, 9))):
        log = opened(tmp_path, position, told)
        for row in written(steps):
            log.write(row)
        log.close()
    assert scalars(tmp_path, "loss") == [(8 * n, n / 2) for n in range(9)]


def test_lines_of_a_part_that_is_repeated_are_dropped(tmp_path, told):
    log = opened(tmp_path, 0, told)
    for row in ({"window": 0, "draw": 0}, {"step": 2, "draw": 16}, {"window": 1, "draw": 16}, {"step": 3, "draw": 24}):
        log.write(row)
    log.close()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 1, "dra')  # killed
    log = opened(tmp_path, 16, told)
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
def test_what_is_no_whole_line_with_a_draw_is_dropped(tmp_path, torn):
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b'{"draw": 1, "a": 1}\n' + torn + b'\n{"draw": 2}\n' + torn)
    assert keep_lines(path, lambda values: True) == [{"draw": 1, "a": 1}, {"draw": 2}]
    assert path.read_bytes() == b'{"draw": 1, "a": 1}\n{"draw": 2}\n'
    assert keep_lines(path, lambda values: values["draw"] > 1) == [{"draw": 2}]
    assert keep_lines(tmp_path / "none", lambda values: True) == []
    assert [p.name for p in tmp_path.iterdir()] == ["lines.jsonl"]
