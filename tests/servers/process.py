"""Starts servers for tests and takes them away again, whatever happens to the test.

    test process  ── launch() ──>  keeper: python -m tests.servers.NAME  ──>  daemons, a folder

The keeper makes a temporary folder, starts the daemons in it, says on stdout as one line of JSON
what there is to know, and waits. It ends on SIGTERM or when the process it watches is gone, however
that one went (a pidfd tells), and then the daemons are killed and the folder is removed. Should the
keeper itself be killed, the kernel sends the daemons SIGTERM.

A module of a server calls `keep()` in its `__main__`; run by hand it serves until Ctrl-C. Nothing
here knows what is served.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import random
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
START_S = 60.0  # a start takes 0.1 to 4 s; machines under test are busy
STOP_S = 5.0  # from SIGTERM to SIGKILL
PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)

Facts = dict[str, Any]


class ServerError(RuntimeError):
    """A server did not start, or what it needs is not there; the message says what to do."""


def environment() -> dict[str, str]:
    """What servers get of ours: no credentials, no sanitizers, no settings of Python."""
    kept = ("PATH", "HOME", "USER", "TMPDIR")
    return {name: os.environ[name] for name in kept if name in os.environ} | {"LC_ALL": "C.UTF-8"}


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on, below those the kernel gives to clients."""
    with contextlib.ExitStack() as held:
        ports: list[int] = []
        for port in random.SystemRandom().sample(range(20000, 32000), 1000):
            listener = held.enter_context(socket.socket())
            # As servers do: connections that linger from an earlier one are no hindrance.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                listener.bind(("127.0.0.1", port))
                ports.append(port)
            if len(ports) == count:
                return ports
    raise ServerError(f"127.0.0.1: no {count} free ports among 20000..31999, expected some")


def end_with_parent() -> None:
    """In a child: have the kernel send SIGTERM when the thread that made it is gone."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


# ---- in the keeper -------------------------------------------------------------------------------


class Keeper:
    """Daemons of one server and the folder they work in."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="tarpon-server-"))
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    def run(self, *command: str | Path, env: Mapping[str, str] | None = None) -> str:
        """Run one step of the preparation; its output."""
        done = subprocess.run(
            [str(word) for word in command],
            cwd=self.folder,
            env=environment() | dict(env or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=START_S,
        )
        text = done.stdout.decode(errors="replace")
        if done.returncode != 0:
            raise ServerError(f"{command[0]}: exit status {done.returncode}, expected 0: {text}")
        return text

    def spawn(self, name: str, *command: str | Path, env: Mapping[str, str] | None = None) -> None:
        """Start a daemon that stays in the foreground, in a process group of its own."""
        with self._log(name).open("wb") as log:
            self._daemons[name] = subprocess.Popen(
                [str(word) for word in command],
                cwd=self.folder,
                env=environment() | dict(env or {}),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=end_with_parent,
            )

    def wait_until(self, ready: Callable[[], bool], what: str) -> None:
        """Wait for the daemons; the end of one of them is the end of waiting."""
        until = time.monotonic() + START_S
        while not ready():
            for name, daemon in self._daemons.items():
                if daemon.poll() is not None:
                    raise ServerError(
                        f"{name}: ended with status {daemon.returncode} before {what}, expected it "
                        f"to go on; its log ends: {self._tail(name)}"
                    )
            if time.monotonic() > until:
                tails = "; ".join(f"{name}: {self._tail(name)}" for name in self._daemons)
                raise ServerError(f"no {what} after {START_S:.0f} s, expected 4; logs end: {tails}")
            time.sleep(0.02)

    def stop(self) -> None:
        """End the daemons, the last one first, and remove the folder."""
        for daemon in reversed(self._daemons.values()):
            _signal_group(daemon, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                daemon.wait(STOP_S)
            _signal_group(daemon, signal.SIGKILL)  # its children, if it left any
            daemon.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def _tail(self, name: str) -> str:
        return self._log(name).read_text(errors="replace")[-1500:]


def _signal_group(daemon: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(daemon.pid, number)


def keep(start: Callable[[Keeper, Facts], Facts]) -> None:
    """The main function of a keeper: argv[1] holds options as JSON, among them `watch`, a pid."""
    options = json.loads(sys.argv[1]) if len(sys.argv) > 1 else {}
    watched = options.pop("watch", None)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    keeper = None
    try:
        alive = os.pidfd_open(watched) if watched else None
        keeper = Keeper()
        print(json.dumps(start(keeper, options)), flush=True)
        poll = select.poll()
        if alive is not None:
            poll.register(alive, select.POLLIN)
        poll.poll()
    except KeyboardInterrupt:
        pass
    except Exception as error:
        text = str(error) if isinstance(error, ServerError) else f"{sys.argv[0]}: {error!r}"
        print(json.dumps({"error": text}), flush=True)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if keeper is not None:
            keeper.stop()


# ---- in the test process -------------------------------------------------------------------------


def launch(module: str, watch: int, options: Facts) -> tuple[subprocess.Popen[str], Facts]:
    """Start a keeper that ends with process `watch`; what it said. Raises ServerError."""
    keeper = subprocess.Popen(
        [sys.executable, "-m", module, json.dumps(options | {"watch": watch})],
        cwd=ROOT,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,  # Ctrl-C is for us to act on
    )
    assert keeper.stdout is not None
    with keeper.stdout:
        line = keeper.stdout.readline()  # wait_until bounds it
    facts = json.loads(line) if line else {"error": f"{module}: ended without a word"}
    if "error" in facts:
        end(keeper)
        raise ServerError(facts["error"])
    return keeper, facts


def end(keeper: subprocess.Popen[str]) -> None:
    keeper.terminate()
    keeper.wait()


@contextlib.contextmanager
def running(module: str, **options: Any) -> Iterator[Facts]:
    """A server for the length of a `with`."""
    keeper, facts = launch(module, os.getpid(), options)
    try:
        yield facts
    finally:
        end(keeper)


def shared(module: str, folder: Path, watch: int, **options: Any) -> Facts:
    """The one server of this kind for all processes that name `folder`: the first one starts it.

    It ends with process `watch`.
    """
    name = module.rpartition(".")[2] + "".join(f"-{key}={options[key]}" for key in sorted(options))
    with (folder / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        known = folder / f"{name}.json"
        if not known.exists():
            try:
                keeper, facts = launch(module, watch, options)
                keeper.returncode = 0  # it outlives us: else Popen's __del__ warns that it runs
            except ServerError as error:
                facts = {"error": str(error)}  # the others need not try
            known.write_text(json.dumps(facts))
        facts = json.loads(known.read_text())
    if "error" in facts:
        raise ServerError(facts["error"])
    return facts


def need(programs: Sequence[str], install: str) -> None:
    """Raise ServerError if a program is not there; `install` is the command that brings it."""
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        raise ServerError(f"{', '.join(missing)}: not installed, expected in PATH; run {install}")
