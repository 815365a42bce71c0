"""Runs the parts of a half in worker processes: a part that hangs or dies costs its own results and no others."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gpu.child import Child
from gpu.lines import Line
from gpu.parts import Part


class NoDevice(Exception):
    """There is no CUDA device."""


@dataclass
class Half:
    """How a half is run, and where its results go."""

    name: str
    parts: list[Part]
    rehearse: bool
    seconds: float  # for all parts together
    folder: Path  # for temporary files
    artifacts: Path  # for logs and JUnit files
    environment: dict[str, str]
    on_ready: Callable[[dict[str, Any]], None]  # once, with the device, versions and missing packages
    on_line: Callable[[str, Line], None]  # part, line

    def run(self) -> bool:
        """Whether every part ran to its end and all goals of correctness were met. Raises NoDevice."""
        self._deadline = time.monotonic() + self.seconds
        self._passed, self._announced = True, False
        remaining = list(self.parts)
        while remaining and time.monotonic() < self._deadline:
            remaining = self._run_worker(remaining)
        for part in remaining:
            self._left_out(part)
        return self._passed

    def _run_worker(self, parts: list[Part]) -> list[Part]:
        """Runs the parts in one process until it ends; returns those that are still to run."""
        done, last, began = 0, "", time.monotonic()
        request = {
            "half": self.name,
            "parts": [vars(part) for part in parts],
            "rehearse": self.rehearse,
            "deadline": self._deadline,
            "folder": str(self.folder),
            "artifacts": str(self.artifacts),
        }
        with Child(request, self.environment, self.artifacts / f"gpu_check-{self.name}.log") as child:
            for event in child.events(start_seconds=self._deadline - began):
                last = event["event"]
                if last == "no device":
                    raise NoDevice
                if last == "ready" and not self._announced:
                    self._announced = True
                    self.on_ready(event)
                elif last == "begin":
                    began = time.monotonic()
                elif last == "line":
                    self._line(event["part"], Line(**event["line"]))
                elif last == "left out":
                    self._left_out(parts[done])
                elif last == "failed":
                    self._failed(parts[done], event["reason"])
                elif last == "end":
                    self._line(event["part"], Line(f"time for: {event['part']}", time.monotonic() - began, "s"))
                done += last in ("left out", "failed", "end")
        if not child.returncode or done == len(parts):
            return parts[done:]
        if last != "failed":
            if last in ("end", "left out"):  # between two parts, of which the next has not begun
                return parts[done:]
            self._failed(parts[done], child.reason(time.monotonic() - began))
            done += 1
        failed, after = parts[done - 1], parts[done:]
        if not failed.retry_with:
            return after
        settings = " ".join(f"{name}={value}" for name, value in failed.retry_with.items())
        self._line(failed.name, Line(f"{failed.name}, once more", f"with {settings}, which later parts keep"))
        self.environment = {**self.environment, **failed.retry_with}
        return [replace(failed, retry_with={}), *after]

    def _line(self, part: str, line: Line) -> None:
        if not self._announced:  # the process ended before it could say where it runs
            self._announced = True
            self.on_ready({"device": "unknown", "versions": {}, "missing": []})
        if line.must and line.met is False:
            self._passed = False
        self.on_line(part, line)

    def _left_out(self, part: Part) -> None:
        must = not part.optional
        self._line(part.name, Line(part.name, "left out: no time left", met=False if must else None, must=must))

    def _failed(self, part: Part, reason: str) -> None:
        final = not part.retry_with
        self._line(part.name, Line(part.name, f"failed: {reason}", met=False if final else None, must=final))
