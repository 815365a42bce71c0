"""Results of gpu_check: lines, the file that stores them, and the table of docs/benchmarks.md made from that file."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Line:
    """One result; `met` is None where there is no goal, `must` marks goals of correctness."""

    name: str
    value: float | str
    unit: str = ""
    goal: str = ""
    met: bool | None = None
    must: bool = False

    def text(self) -> str:
        """The value with its unit."""
        if isinstance(self.value, str):
            return f"{self.value} {self.unit}".rstrip()
        if isinstance(self.value, int):
            return f"{self.value:,} {self.unit}".rstrip()
        digits = 0 if abs(self.value) >= 1000 else 1 if abs(self.value) >= 10 else 3
        return f"{self.value:,.{digits}f} {self.unit}".rstrip()

    def __str__(self) -> str:
        verdict = {None: "", True: "met", False: "MISSED"}[self.met]
        return f"{self.name:64} {self.text():24} {self.goal:16} {verdict}".rstrip()


class RowFile:
    """A JSON-lines file; each record is on disk before `append` returns. Without a path nothing is stored."""

    def __init__(self, path: Path | None, run: str) -> None:
        self._path, self._run = path, run
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)

    def append(self, record: dict[str, Any]) -> None:
        if self._path is None:
            return
        with open(self._path, "a") as file:
            file.write(json.dumps({"run": self._run, **record}) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def line(self, half: str, part: str, line: Line) -> None:
        self.append({"half": half, "part": part, **asdict(line)})


def table(path: Path) -> str:
    """Return a Markdown table of the latest run of each half on each device, with the reasons of failed parts."""
    runs: dict[str, dict[str, Any]] = {}  # headers by run
    lines: dict[str, list[dict[str, Any]]] = {}
    for text in path.read_text().splitlines():
        record = json.loads(text)
        if "device" in record:
            runs[record["run"]] = record
        else:
            lines.setdefault(record["run"], []).append(record)
    latest = {(header["device"], header["half"]): run for run, header in runs.items()}  # the file is chronological
    devices = list(dict.fromkeys(device for device, _ in latest))
    cells: dict[tuple[str, str], dict[str, str]] = {}  # (half, name): device: text
    goals: dict[tuple[str, str], dict[str, None]] = {}
    for half in ("model", "dali"):
        for device in devices:
            for record in lines.get(latest.get((device, half), ""), ()):
                line = Line(**{name: record[name] for name in Line.__dataclass_fields__})
                key = half, line.name
                missed = " (missed)" if line.met is False and line.goal else ""
                cells.setdefault(key, {})[device] = line.text() + missed
                if line.goal:
                    goals.setdefault(key, {})[line.goal] = None
    return "\n".join(_rows(devices, cells, goals)) + "\n"


def _rows(
    devices: list[str], cells: dict[tuple[str, str], dict[str, str]], goals: dict[tuple[str, str], dict[str, None]]
) -> Iterator[str]:
    yield _row(["Measurement", "Goal", *devices])
    yield _row(["---"] * (2 + len(devices)))
    for key, by_device in cells.items():
        yield _row([key[1], " / ".join(goals.get(key, ())), *(by_device.get(device, "") for device in devices)])


def _row(texts: Iterable[str]) -> str:
    return "| " + " | ".join(text.replace("|", "/").replace("\n", " ") for text in texts) + " |"
