"""Ctrl-C ends the program with exit code 130 and one line, also in imports and at exit."""

import os
import signal
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

START = """
import atexit, os, signal, sys, threading, time
signal.signal(signal.SIGINT, {handler})
sys.argv[1:] = {words}

def interrupt():
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.01)

class Finder:  # presses Ctrl-C when a module is imported
    def find_spec(self, name, path, target=None):
        if name == {module!r}:
            interrupt()

sys.meta_path.insert(0, Finder())
from mimcl.cli.main import program
"""
COMMAND = """
from mimcl.cli import app

@app.app.command("it")
def it(): {body}

program()
"""
INTERRUPTED = "mimcl: interrupted\n"


def run(tmp_path, code, words=("it",), module="", handler="signal.default_int_handler"):
    (tmp_path / "program.py").write_text(START.format(words=list(words), module=module, handler=handler) + code)
    command = [sys.executable, str(tmp_path / "program.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    return done.returncode, done.stdout, done.stderr


def run_command(tmp_path, *body):
    return run(tmp_path, COMMAND.format(body="".join(f"\n    {line}" for line in body)))


@pytest.mark.parametrize(
    ("words", "module"),
    [
        (["--help"], "mimcl.cli.screen"),
        (["--help"], "typer"),
        (["--help"], "mimcl.cli.app"),
        (["train", "--help"], "mimcl.cli.train"),
        (["--help"], "mimcl.cli.help.layout"),
        (["inspect", "nowhere"], "mimcl.pipeline.remote.urls"),
        (["shard", "src"], "numpy._core.multiarray"),
        (["shard", "src"], "xxhash"),
        (["shard", "src"], "pyarrow.lib"),
        (["doctor"], "torch"),
    ],
)
def test_in_an_import(tmp_path, words, module):
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "a.jpg").write_bytes(b"")
    assert run(tmp_path, "program()", words, module) == (130, "", INTERRUPTED)


def test_in_an_import_that_turns_it_into_another_error_or_goes_on(tmp_path):
    (tmp_path / "wrapped.py").write_text(
        "from __main__ import interrupt\ntry: interrupt()\nexcept BaseException as error: raise ImportError(error)\n"
    )
    for body in (["import wrapped"], ["try: import wrapped", "except ImportError: pass"]):
        assert run_command(tmp_path, *body) == (130, "", INTERRUPTED)


def test_in_a_library_that_turns_it_into_another_error(tmp_path):
    body = ["try: interrupt()", "except KeyboardInterrupt: raise RuntimeError('failed')"]
    assert run_command(tmp_path, *body) == (130, "", INTERRUPTED)


def test_a_command_cleans_up(tmp_path):
    body = ["try: interrupt()", "finally: print('removed')"]
    assert run_command(tmp_path, *body) == (130, "removed\n", INTERRUPTED)


@pytest.mark.parametrize(
    "at_exit",
    [
        "atexit.register(interrupt)",
        "threading._register_atexit(interrupt)",
        "threading.Timer(0.1, interrupt).start()",
    ],
)
def test_at_exit(tmp_path, at_exit):
    assert run_command(tmp_path, at_exit, "print('done')") == (130, "done\n", INTERRUPTED)


def test_at_exit_after_a_failure_its_exit_code_stays(tmp_path):
    failed = run_command(tmp_path, "atexit.register(interrupt)", "raise ValueError('broken')")
    assert failed == (1, "", "mimcl: broken\n")
    stopped = run_command(tmp_path, "atexit.register(interrupt)", "raise app.typer.Exit(75)")
    assert stopped == (75, "", "")


def test_where_it_is_ignored_it_stays_so(tmp_path):
    code = COMMAND.format(body="interrupt(); print('done')")
    assert run(tmp_path, code, handler="signal.SIG_IGN") == (0, "done\n", "")


def test_the_report_at_the_end_of_a_run_is_only_left_out(tmp_path):
    (tmp_path / "unfinished").mkdir()
    body = ["from mimcl.cli.report.at_end import report_at_end", "report_at_end(sys.argv[0], True)"]
    code = COMMAND.format(body="".join(f"\n    {line}" for line in body))
    code, _, error = run(tmp_path, code, module="mimcl.cli.report.writer")
    assert code == 0
    assert error == f"mimcl: the report was interrupted; write it with `mimcl report {tmp_path / 'program.py'}`\n"


def test_output_that_cannot_be_written_at_exit_is_a_failure(tmp_path):
    command = [sys.executable, "-m", "mimcl.cli.main", "--version"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    assert done.returncode != 0
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    os.close(writer)
    assert done.returncode not in (0, -signal.SIGPIPE)


def test_the_handler_before_is_back_after_main(tmp_path):
    code = (
        "from mimcl.cli.main import main\n"
        "try: main()\nexcept SystemExit: print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)\n"
    )
    assert run(tmp_path, code, ["--version"])[1].splitlines()[1:] == ["True"]
