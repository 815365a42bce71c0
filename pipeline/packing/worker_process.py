"""A worker process: runs the jobs that it receives, and exits when its parent process does, even if that is killed.

It is started as a program of its own. Processes of `multiprocessing` import the parent's main module again, which
repeats the work of a script that has no `if __name__ == "__main__"`, and fails for a program read from standard input.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe
from queue import SimpleQueue
from typing import Any, NamedTuple

from mimcl.pipeline.files import DataError

Work = Callable[[Any, Callable[[int], None]], None]

# With the parent's sys.path, the worker finds the same modules.
_PROGRAM = """
import sys
from multiprocessing.connection import Connection
connection = Connection(int(sys.argv[1]))
sys.path[:] = connection.recv()
from mimcl.pipeline.packing.worker_process import serve
serve(connection)
"""
_STOP = "stop"


class Advanced(NamedTuple):
    """A message of a worker: so many more items are done."""

    items: int


class Finished(NamedTuple):
    """A message of a worker: its job has ended, with this error if any."""

    error: Exception | None


class WorkerProcess:
    """A worker process, seen from its parent. `connection` gets Advanced and Finished, and ends with the process."""

    def __init__(self) -> None:
        self.connection, theirs = Pipe()
        # A terminal sends Ctrl-C to all processes, but only the parent may act on it, which then stops the workers.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-X", f"utf8={sys.flags.utf8_mode}", "-c", _PROGRAM, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )
        finally:
            theirs.close()
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self._send(sys.path)

    def start(self, work: Work, job: Any) -> None:
        """Call `work(job, advance)` in the worker."""
        self._send((work, job))

    def stop(self) -> None:
        """Stop the worker at the next `advance` of its job."""
        self._send(_STOP)

    def join(self) -> int:
        """Wait until the process has ended; return its exit code, negative for a signal."""
        with suppress(ConnectionResetError):
            while os.read(self.connection.fileno(), 1 << 16):  # a full pipe would keep it from ending
                pass
        self.connection.close()
        return self._process.wait()

    def _send(self, message: Any) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):  # of a worker that was killed; reading shows that
            self.connection.send(message)


class _Stopped(Exception):
    """Raised by `advance` after the parent has stopped this worker."""


def serve(connection: Connection) -> None:
    """Run the jobs that come through `connection`, in the worker process."""
    jobs: SimpleQueue[Any] = SimpleQueue()
    stopped = threading.Event()
    threading.Thread(target=_receive, args=(connection, jobs, stopped), daemon=True).start()

    def advance(items: int) -> None:
        if stopped.is_set():
            raise _Stopped
        connection.send(Advanced(items))

    while not stopped.is_set():
        message = jobs.get()
        if stopped.is_set():
            return
        try:
            if isinstance(message, Exception):
                raise message
            work, job = message
            work(job, advance)
        except _Stopped:
            return
        except Exception as error:
            error.add_note("".join(traceback.format_exception(error)))
            _report(connection, error)
        else:
            _report(connection, None)


def _receive(connection: Connection, jobs: SimpleQueue[Any], stopped: threading.Event) -> None:
    while True:
        try:
            message: Any = connection.recv()
        except (EOFError, ConnectionResetError):  # the parent has ended
            os._exit(1)
        except (AttributeError, ImportError) as error:
            message = DataError(
                f"a worker process cannot import a class of its job ({error}); define it in a module, or pack "
                "with one worker"
            )
        if message == _STOP:
            stopped.set()
        jobs.put(message)


def _report(connection: Connection, error: Exception | None) -> None:
    try:
        connection.send(Finished(error))
    except OSError:  # the parent has ended
        os._exit(1)
    except Exception:  # the error cannot be pickled
        connection.send(Finished(RuntimeError(f"{type(error).__name__}: {error}")))
