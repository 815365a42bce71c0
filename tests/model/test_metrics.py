"""metrics.jsonl on a disk that is full for a while, what a resume drops, and outcomes one step late."""

import json

import pytest
import torch
from full_disk import files_end_at

from mimcl.model.metrics import LineFile, OutcomeReader, RunLog, keep_lines


@pytest.fixture
def told():
    return []


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def written(numbers):
    return [{"step": n, "draw": 8 * n, "loss": n / 2} for n in numbers]


def test_each_event_is_a_line_and_what_json_lacks_is_null(tmp_path, told):
    log = RunLog(tmp_path, 0, told.append)
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
        lines.write([row])
    with files_end_at(room):
        for row in written(range(2, 9)):
            lines.write([row])
    assert path.stat().st_size <= room
    (line,) = told
    assert line == f"{path} cannot be written (File too large); its lines are kept and tried again"
    lines.write(written([9]))
    assert lines_of(path) == written(range(10))
    with files_end_at(0):
        lines.write(written([10]))
    assert len(told) == 2  # full again


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard's thread dies of it
def test_a_run_log_goes_on_without_tensorboard_and_writes_late_lines_when_it_closes(tmp_path, told):
    log = RunLog(tmp_path, 0, told.append)
    log.write(written([0])[0])
    with files_end_at(50):
        for row in written(range(1, 2000)):
            log.write(row)
        for _ in range(100):  # TensorBoard's thread writes when it likes
            if len(told) == 2:
                break
            log._board.flush() if log._board else None
            log.write(written([2000])[0])
    assert {line.partition(" cannot")[0] for line in told} == {"TensorBoard's file", f"{tmp_path}/metrics.jsonl"}
    assert len(told) == 2
    log.close()
    assert lines_of(tmp_path / "metrics.jsonl")[:2000] == written(range(2000))


def test_lines_of_a_part_that_is_repeated_are_dropped(tmp_path, told):
    log = RunLog(tmp_path, 0, told.append)
    for row in ({"window": 0, "draw": 0}, {"step": 2, "draw": 16}, {"window": 1, "draw": 16}, {"step": 3, "draw": 24}):
        log.write(row)
    log.close()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 1, "dra')  # killed
    log = RunLog(tmp_path, 16, told.append)
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


def test_a_step_is_read_one_late_and_as_it_was():
    reader = OutcomeReader(torch.device("cpu"))
    assert reader.settle() == []
    figures = torch.tensor([0.5, 2.0, 0.0, 3.0], dtype=torch.float64)
    assert reader.push(1, 0.1, figures) == []
    figures.copy_(torch.tensor([0.25, torch.nan, 2.0, 0.0]))
    ((first),) = reader.push(2, 0.2, figures)
    figures.zero_()
    (second,) = reader.settle()
    assert (first.step, first.lr, first.loss, first.grad_norm, first.bad) == (1, 0.1, 0.5, 2.0, 3)
    assert (first.finite, first.stop) == (True, False)
    assert (second.step, second.loss, second.finite, second.stop, second.bad) == (2, 0.25, False, True, 0)
    assert reader.settle() == []
