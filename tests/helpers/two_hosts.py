"""Two hosts on one machine: network namespaces joined by a virtual cable, with torchrun in each. Needs root."""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from helpers import torchruns

HOSTS = "ab"
DEVICE = "mimcl0"  # the network device, on either host


def unavailable() -> str | None:
    """Return why two hosts cannot be created here; None if they can."""
    if not shutil.which("ip"):
        return "`ip` (iproute2) is not installed"
    if os.geteuid():
        return "network namespaces need root"
    probe = f"mimcl-{os.getpid()}-probe"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True)
    if made.returncode == 0:
        subprocess.run(["ip", "netns", "delete", probe], check=True)
    return made.stderr.strip() or None


class TwoHosts:
    """Hosts a and b, 10.87.0.1 and 10.87.0.2; a hosts the rendezvous."""

    def __init__(self) -> None:
        self._names = {host: f"mimcl-{os.getpid()}-{host}" for host in HOSTS}

    def connect(self) -> None:
        for host in HOSTS:
            _ip("netns", "add", self._names[host])
            _ip("-n", self._names[host], "link", "set", "lo", "up")
        a, b = self._names.values()
        _ip("link", "add", DEVICE, "netns", a, "type", "veth", "peer", "name", DEVICE, "netns", b)
        for number, name in enumerate((a, b), 1):
            _ip("-n", name, "address", "add", f"10.87.0.{number}/24", "dev", DEVICE)
            _ip("-n", name, "link", "set", DEVICE, "up")

    def torchrun(self, host: str, folder: Path, command: list[str], *, conf: str) -> subprocess.Popen:
        """Start torchrun on a host as a user would; output is appended to FOLDER/HOST.log."""
        number = HOSTS.index(host) + 1
        flags = ["--nnodes", "1:2", "--nproc-per-node", "1", "--max-restarts", "3", "--rdzv-id", "run"]
        flags += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "10.87.0.1:29400"]
        # Both hosts have this machine's name, so neither can find out by name which address is its own.
        flags += ["--rdzv-conf", f"is_host={int(host == 'a')},{conf}", "--local-addr", f"10.87.0.{number}"]
        with open(folder / f"{host}.log", "ab") as log:
            return subprocess.Popen(
                ["ip", "netns", "exec", self._names[host], torchruns.BIN / "torchrun", *flags, "--no-python", *command],
                cwd=folder,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=torchruns.environment(GLOO_SOCKET_IFNAME=DEVICE, **torchruns.ELASTIC),
                start_new_session=True,
            )

    def kill(self, host: str) -> None:
        """Kill every process of the host at once; its kernel still closes their connections."""
        for pid in _ip("netns", "pids", self._names[host]).split():
            os.kill(int(pid), signal.SIGKILL)

    def cut(self, host: str) -> None:
        """Cut the host's cable: nothing leaves it any more, and connections stay open."""
        _ip("-n", self._names[host], "link", "set", DEVICE, "down")

    def remove(self) -> None:
        """Remove the hosts and their processes."""
        for host, name in self._names.items():
            if Path("/run/netns", name).exists():
                self.kill(host)
                _ip("netns", "delete", name)


@contextmanager
def two_hosts() -> Iterator[TwoHosts]:
    hosts = TwoHosts()
    try:
        hosts.connect()
        yield hosts
    finally:
        hosts.remove()


def _ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr}"
    return done.stdout


def lose_b(home: Path, run: Path, arguments: list[str], how: str, *, conf: str) -> tuple[float, float]:
    """Train on both hosts, lose b after the first checkpoint by `how` (kill or cut), and wait until a ends.

    Returns the seconds from the loss to the next step and to the end.
    """
    with two_hosts() as hosts:
        log = home / "a.log"
        for host in HOSTS:
            (home / f"{host}.log").unlink(missing_ok=True)
        command = ["mimcl", *arguments, "--resume"]
        processes = {host: hosts.torchrun(host, home, command, conf=conf) for host in HOSTS}
        try:
            torchruns.until((run / "checkpoints" / "latest").exists, "a checkpoint", log)
            getattr(hosts, how)("b")

            def resumed() -> bool:
                return "\nstep" in log.read_text().rpartition(" at draw ")[2]

            next_step = torchruns.until(resumed, "the next step", log)
            end = next_step + torchruns.until(lambda: processes["a"].poll() is not None, "the end", log)
            assert processes["a"].returncode == 0, log.read_text()
        finally:
            hosts.remove()
            for process in processes.values():
                process.kill()
                process.wait()
    return next_step, end
