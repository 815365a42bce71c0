"""torchrun as a user runs it, on one machine, and the processes and files it leaves behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

BIN = Path(sys.executable).parent
ELASTIC = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}


def environment(**more: str) -> dict[str, str]:
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PATH": path} | more


def start(log: Path, flags: Sequence[str], command: Sequence[str], cwd: Path, **more: str) -> subprocess.Popen:
    """Start `torchrun FLAGS --no-python COMMAND` in its own session, with all output in `log`."""
    with open(log, "wb") as file:
        return subprocess.Popen(
            [BIN / "torchrun", *flags, "--no-python", *command],
            cwd=cwd,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment(**more),
            start_new_session=True,
        )


def until(condition: Callable[[], bool], what: str, log: Path, seconds: float = 200) -> float:
    """Wait for the condition; return the seconds it took."""
    began = time.monotonic()
    while not condition():
        elapsed = time.monotonic() - began
        assert elapsed < seconds, f"{what} not within {seconds} seconds\n{log.read_text()}"
        time.sleep(0.02)
    return time.monotonic() - began


def workers(process: subprocess.Popen) -> list[int]:
    """Return the process ids started by this torchrun, by rank."""
    return sorted(int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split())


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def orphaned(before: set[str]) -> set[str]:
    """Return new files in /dev/shm that no living process has mapped, as those of other programs would be."""
    maps = []
    for path in Path("/proc").glob("[0-9]*/maps"):
        try:
            maps.append(path.read_text())
        except OSError:  # it has just ended
            continue
    return {
        name for name in set(os.listdir("/dev/shm")) - before if not any(f"/dev/shm/{name}" in text for text in maps)
    }


def kill_all(process: subprocess.Popen) -> None:
    """Kill torchrun and its workers, if any are left."""
    for pid in [*(workers(process) if process.poll() is None else ()), process.pid]:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait()
