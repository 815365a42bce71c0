"""Run the parts of a half in worker processes, so that a part that hangs or dies loses only its own results."""

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
    """No CUDA device was found."""


@dataclass
class Half:
    """One half of the check: its parts, how to run them, and where results go."""

    name: str
    parts: list[Part]
    rehearse: bool
    seconds: float  # for all parts together
    folder: Path  # for temporary files
    artifacts: Path  # for logs and JUnit files
    environment: dict[str, str]
    on_ready: Callable[[dict[str, Any]], None]  # called once, with the device, versions and missing packages
    on_line: Callable[[str, Line], None]  # part, line

    def run(self) -> bool:
        """Run all parts; return whether all completed and met their correctness goals. Raises NoDevice."""
        self._deadline = time.monotonic() + self.seconds
        self._passed, self._announced = True, False
        remaining = list(self.parts)
        while remaining and time.monotonic() < self._deadline:
            remaining = self._run_worker(remaining)
        for part in remaining:
            self._skipped(part)
        return self._passed

    def _run_worker(self, parts: list[Part]) -> list[Part]:
        """Run the parts in one process until it ends; return those still to run."""
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
                elif last == "skipped":
                    self._skipped(parts[done])
                elif last == "failed":
                    self._failed(parts[done], event["reason"])
                elif last == "end":
                    self._line(event["part"], Line(f"time for: {event['part']}", time.monotonic() - began, "s"))
                done += last in ("skipped", "failed", "end")
        if not child.returncode or done == len(parts):
            return parts[done:]
        if last != "failed":
            if last in ("end", "skipped"):  # it ended between two parts
                return parts[done:]
            self._failed(parts[done], child.reason(time.monotonic() - began))
            done += 1
        failed, after = parts[done - 1], parts[done:]
        if not failed.retry_with:
            return after
        settings = " ".join(f"{name}={value}" for name, value in failed.retry_with.items())
        self._line(failed.name, Line(f"{failed.name}, retried", f"with {settings}, which later parts keep"))
        self.environment = {**self.environment, **failed.retry_with}
        return [replace(failed, retry_with={}), *after]

    def _line(self, part: str, line: Line) -> None:
        if not self._announced:  # the process ended before it could report the device
            self._announced = True
            self.on_ready({"device": "unknown", "versions": {}, "missing": []})
        if line.must and line.met is False:
            self._passed = False
        self.on_line(part, line)

    def _skipped(self, part: Part) -> None:
        must = not part.optional
        self._line(part.name, Line(part.name, "skipped: no time left", met=False if must else None, must=must))

    def _failed(self, part: Part, reason: str) -> None:
        final = not part.retry_with
        self._line(part.name, Line(part.name, f"failed: {reason}", met=False if final else None, must=final))
