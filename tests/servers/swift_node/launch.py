"""Runs Swift's servers, by the Python of .venv/servers: launch.py FOLDER KIND=PORT...

Beside the configuration in FOLDER it needs rings, made here. The imports, most of the start, are
done once: the servers are forks of this process. It ends when the first of them does, and its end,
whatever it is, is theirs.
"""

import ctypes
import os
import signal
import sys

import swift.account.server
import swift.container.server
import swift.obj.server
import swift.proxy.server  # noqa: F401  imported for the forks
from swift.common import utils
from swift.common.ring import RingBuilder
from swift.common.wsgi import run_wsgi

PR_SET_PDEATHSIG = 1


def make_ring(folder: str, kind: str, port: int) -> None:
    """One device holds everything."""
    ring = RingBuilder(part_power=4, replicas=1, min_part_hours=1)
    device = {"region": 1, "zone": 1, "ip": "127.0.0.1", "port": port, "device": "d1", "weight": 1}
    ring.add_dev(device)
    ring.rebalance()
    ring.get_ring().save(os.path.join(folder, f"{kind}.ring.gz"))


def main() -> int:
    folder = sys.argv[1]
    ports = dict(argument.split("=") for argument in sys.argv[2:])
    for kind, port in ports.items():
        if kind != "proxy":
            make_ring(folder, kind, int(port))
    utils.set_swift_dir(folder)  # else the hash prefix is read from /etc/swift
    for kind in ports:
        if os.fork() == 0:
            # Swift makes each server a session of its own, which signals to our group pass by.
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            return run_wsgi(os.path.join(folder, f"{kind}.conf"), f"{kind}-server", default_port=0)
    return os.waitstatus_to_exitcode(os.wait()[1])


if __name__ == "__main__":
    sys.exit(main())
