"""Signals end a run after the step, or at once where it must be; each in a process of its own."""

import signal
import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.slow  # starts processes

PREAMBLE = """
import ctypes, os, signal, sys, threading, time
from mimcl.cli.run.signals import StopSignals

# A suite that was started in the background, or by nohup, hands down signals that are ignored.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)

def say(line):
    sys.stderr.write(line + "\\n")

def ready():
    print("ready", flush=True)

def stuck():
    # Deep in C, where no signal gets through to Python's handlers: a mutex that is never unlocked.
    lock = ctypes.CDLL(None).pthread_mutex_lock
    mutex = ctypes.create_string_buffer(64)
    lock(mutex)
    ready()
    lock(mutex)

def until(condition):
    while not condition():
        time.sleep(0.01)
"""


@pytest.fixture
def start():
    """Runs code after the preamble until it says that it is ready."""
    processes = []

    def started(code):
        process = subprocess.Popen(
            [sys.executable, "-c", PREAMBLE + code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        processes.append(process)
        assert process.stdout.readline() == "ready\n", process.stderr.read()
        return process

    yield started
    for process in processes:
        process.kill()
        process.communicate()


def ended(process, within=40):
    """Exit code and what was said."""
    out, err = process.communicate(timeout=within)
    return process.returncode, out, err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_one_signal_is_a_request_and_nothing_else(start, number):
    process = start(
        "with StopSignals(say) as signals:\n"
        "    assert not signals.requested\n"
        "    ready()\n"
        "    until(lambda: signals.requested)\n"
        "    time.sleep(0.5)\n"
        "print('saved')\n"
    )
    process.send_signal(number)
    assert ended(process) == (0, "saved\n", "")


def test_nohup_stays(start):
    process = start(
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "with StopSignals(say, grace_seconds=0.1) as signals:\n"
        "    ready()\n"
        "    time.sleep(1)\n"
        "    assert not signals.requested\n"
        "assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN\n"
        "print('done')\n"
    )
    process.send_signal(signal.SIGHUP)
    assert ended(process) == (0, "done\n", "")


def test_the_request_is_seen_by_others_while_the_main_thread_is_stuck(start):
    process = start(
        "signals = StopSignals(say)\n"
        "def other():\n"
        "    until(lambda: signals.requested)\n"
        "    os._exit(7)\n"
        "threading.Thread(target=other).start()\n"
        "with signals:\n"
        "    stuck()\n"
    )
    process.send_signal(signal.SIGTERM)
    assert ended(process)[0] == 7


@pytest.mark.parametrize("where", ["stuck()", "signals.disable_timeout(); stuck()", "ready(); time.sleep(60)"])
def test_a_second_interrupt_leaves_at_once(start, where):
    process = start(f"with StopSignals(say) as signals:\n    {where}\n")
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.5)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    code, out, err = ended(process)
    assert (code, out) == (130, "")
    assert "interrupted twice" in err
    assert time.monotonic() - began < 30  # of the 60 that it would else take


def test_last_words_that_cannot_be_said_keep_nothing_alive(start):
    process = start(
        "lock = threading.Lock()\n"
        "lock.acquire()  # as a console's is while it writes to a terminal that is stopped\n"
        "with StopSignals(lambda line: lock.acquire()):\n"
        "    stuck()\n"
    )
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.2)
    assert ended(process)[0] == 130


def test_a_step_that_does_not_end_is_left(start):
    process = start("with StopSignals(say, grace_seconds=1.0):\n    stuck()\n")
    time.sleep(1.5)  # nothing ends before it is asked to
    assert process.poll() is None
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    code, _, err = ended(process)
    assert code == 1
    assert err.startswith("asked to stop, but the current step does not finish")
    assert err.count("\n") == 1
    assert 0.9 < time.monotonic() - began < 8  # of the 10 that it would else take


ABANDON = """
signals = StopSignals(say, grace_seconds=0.3, save_seconds=1.0)
changing = threading.RLock()
def save():
    print("saving", flush=True)
    {save}
signals.abandon_with(changing, save, "continue with this")
with signals:
    {main}
"""


@pytest.mark.parametrize(
    ("save", "code", "line"),
    [
        ("return True", 75, "asked to stop, but the current step does not finish: abandoned it and saved the position "
         "before it; continue with this\n"),
        ("return False", 1, "from the last checkpoint\n"),
        ("raise OSError('disk is full')", 1, "resume from the last checkpoint: disk is full\n"),
        ("time.sleep(60)", 1, "from the last checkpoint\n"),
    ],
)  # fmt: skip
def test_a_step_that_does_not_end_is_abandoned_once_the_position_before_it_is_saved(start, save, code, line):
    process = start(ABANDON.format(save=save, main="stuck()"))
    process.send_signal(signal.SIGTERM)
    found, out, err = ended(process)
    assert (found, out) == (code, "saving\n")
    assert err.endswith(line)
    assert err.count("\n") == 1


def test_nothing_is_saved_while_the_state_may_change(start):
    process = start(ABANDON.format(save="return True", main="changing.acquire(); stuck()"))
    process.send_signal(signal.SIGTERM)
    code, out, err = ended(process)
    assert (code, out) == (1, "")
    assert "exiting without saving" in err


def test_a_step_that_ends_after_all_is_saved_once_and_then_the_process_ends(start):
    """The training's own end waits for the thread that saves."""
    main = "ready(); until(lambda: signals.requested); time.sleep(0.8); signals.disable_timeout(); print('twice')"
    process = start(ABANDON.format(save="time.sleep(0.7); return True", main=main))
    process.send_signal(signal.SIGTERM)
    assert ended(process)[:2] == (75, "saving\n")


def test_a_step_that_ends_in_time_is_saved_by_the_training_itself(start):
    main = "changing.acquire(); ready(); until(lambda: signals.requested); time.sleep(0.9); signals.disable_timeout()"
    process = start(ABANDON.format(save="return True", main=main + "; changing.release(); time.sleep(1); print('end')"))
    process.send_signal(signal.SIGTERM)
    assert ended(process) == (0, "end\n", "")


def test_steps_may_take_as_long_as_the_longest_did_and_the_grace_beyond(start):
    process = start(
        "with StopSignals(say, grace_seconds=0.5) as signals:\n"
        "    time.sleep(1.5); signals.step_done()\n"
        "    time.sleep(0.1); signals.step_done()\n"
        "    ready()\n"
        "    until(lambda: signals.requested)\n"
        "    time.sleep(1.3); signals.step_done()\n"
        "    time.sleep(1.3); signals.step_done()\n"
        "print('done')\n"
    )
    process.send_signal(signal.SIGTERM)
    assert ended(process) == (0, "done\n", "")


def test_saving_may_take_as_long_as_it_takes_and_no_second_sigterm_interrupts_it(start):
    process = start(
        "with StopSignals(say, grace_seconds=0.3) as signals:\n"
        "    ready()\n"
        "    until(lambda: signals.requested)\n"
        "    signals.disable_timeout()\n"
        "    time.sleep(1.5)\n"
        "    print('saved')\n"
    )
    for _ in range(3):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
    assert ended(process) == (0, "saved\n", "")


def test_the_timeout_can_be_disabled_after_the_request(start):
    process = start(
        "with StopSignals(say, grace_seconds=0.8) as signals:\n"
        "    ready()\n"
        "    until(lambda: signals.requested)\n"
        "    time.sleep(0.4)\n"
        "    signals.disable_timeout()\n"
        "    time.sleep(1.2)\n"
        "print('saved')\n"
    )
    process.send_signal(signal.SIGINT)
    assert ended(process) == (0, "saved\n", "")


@pytest.mark.parametrize("how", ["pass", "raise KeyError"])
def test_everything_is_as_before_after_the_block(start, how):
    process = start(
        "reader, writer = os.pipe()\n"
        "os.set_blocking(writer, False)\n"
        "signal.set_wakeup_fd(writer)\n"
        "before = signal.signal(signal.SIGTERM, lambda *_: None), signal.getsignal(signal.SIGINT)\n"
        "mine = signal.getsignal(signal.SIGTERM)\n"
        "threads, files = threading.active_count(), set(os.listdir('/proc/self/fd'))\n"
        "try:\n"
        "    with StopSignals(say):\n"
        "        assert signal.getsignal(signal.SIGTERM) is not mine\n"
        f"        {how}\n"
        "except KeyError: pass\n"
        "assert signal.getsignal(signal.SIGTERM) is mine\n"
        "assert signal.getsignal(signal.SIGINT) is signal.default_int_handler\n"
        "assert signal.set_wakeup_fd(-1) == writer\n"
        "assert threading.active_count() == threads\n"
        "assert set(os.listdir('/proc/self/fd')) == files\n"
        "try:\n"
        "    ready()\n"
        "    time.sleep(30)\n"
        "except KeyboardInterrupt: print('interrupted')\n"
    )
    process.send_signal(signal.SIGINT)
    assert ended(process) == (0, "interrupted\n", "")
