"""OpenStack Swift with its S3 API, on 127.0.0.1: what tests take for S3.

    with swift.running() as server:
        boto3.client("s3", **server.client_options())

A production object store, all of it in one folder: proxy, account, container and object servers,
four processes. It verifies signatures (SigV4 headers, presigned URLs, chunks) and checksums of
uploads. It differs from AWS where it answers 400 to anonymous requests, takes any session token,
and knows no If-Match on PUT; tests/servers/ceph.py is for tests that need those.

It lives in a virtual environment of its own, so that its dependencies never meet ours:
scripts/install_test_servers.sh. It keeps metadata in user xattrs.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pwd
from collections.abc import Iterator
from pathlib import Path

from tests.servers import process
from tests.servers.s3 import S3Server

PYTHON = process.ROOT / ".venv" / "servers" / "bin" / "python"
INSTALL = "scripts/install_test_servers.sh"
ACCESS_KEY, SECRET_KEY, REGION = "test:tester", "not-to-be-seen-anywhere", "us-east-1"

SWIFT_CONF = """\
[swift-hash]
swift_hash_path_suffix = tarpon
swift_hash_path_prefix = tarpon
[storage-policy:0]
name = gold
default = yes
"""
# workers = 0: the process that starts is the one that serves.
COMMON = """\
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
user = {user}
swift_dir = {folder}
workers = 0
log_level = WARNING
"""
STORAGE = """\
devices = {folder}/devices
mount_check = false
fallocate_reserve = 0
[pipeline:main]
pipeline = {kind}-server
[app:{kind}-server]
use = egg:swift#{kind}
"""
PROXY = """\
[pipeline:main]
pipeline = catch_errors gatekeeper cache listing_formats s3api tempauth copy slo dlo \
versioned_writes symlink proxy-server
[app:proxy-server]
use = egg:swift#proxy
allow_account_management = true
account_autocreate = true
client_chunk_size = 1048576
object_chunk_size = 1048576
[filter:cache]
paste.filter_factory = cache:filter_factory
[filter:s3api]
use = egg:swift#s3api
location = {region}
s3_acl = false
min_segment_size = 5242880
[filter:tempauth]
use = egg:swift#tempauth
user_{account}_{name} = {secret} .admin
[filter:versioned_writes]
use = egg:swift#versioned_writes
allow_versioned_writes = true
allow_object_versioning = true
"""
PLAIN_FILTERS = ("catch_errors", "gatekeeper", "listing_formats", "copy", "slo", "dlo", "symlink")


@contextlib.contextmanager
def running() -> Iterator[S3Server]:
    """A store of its own, empty, in about 2 s. Raises ServerError."""
    with process.running(__name__) as facts:
        yield S3Server(**facts)


def shared(folder: Path, watch: int) -> S3Server:
    """As `process.shared`."""
    return S3Server(**process.shared(__name__, folder, watch))


def start(keeper: process.Keeper, _: process.Facts) -> process.Facts:
    if not PYTHON.exists():
        raise process.ServerError(f"{PYTHON}: not there, expected Swift's Python; run {INSTALL}")
    _check_xattrs(keeper.folder)
    kinds = ("account", "container", "object")
    ports = dict(zip((*kinds, "proxy"), process.free_ports(4), strict=True))
    for kind, port in ports.items():
        text = COMMON.format(
            port=port, user=pwd.getpwuid(os.geteuid()).pw_name, folder=keeper.folder
        )
        if kind == "proxy":
            account, name = ACCESS_KEY.split(":")
            text += PROXY.format(region=REGION, account=account, name=name, secret=SECRET_KEY)
            text += "".join(f"[filter:{each}]\nuse = egg:swift#{each}\n" for each in PLAIN_FILTERS)
        else:
            text += STORAGE.format(folder=keeper.folder, kind=kind)
        (keeper.folder / f"{kind}.conf").write_text(text)
    (keeper.folder / "swift.conf").write_text(SWIFT_CONF)
    (keeper.folder / "devices" / "d1").mkdir(parents=True)
    launcher = Path(__file__).with_name("swift_node") / "launch.py"
    arguments = [f"{kind}={port}" for kind, port in ports.items()]
    keeper.spawn("swift", PYTHON, launcher, keeper.folder, *arguments)
    keeper.wait_until(lambda: all(map(process.answers, ports.values())), "answer of Swift")
    return {
        "endpoint": f"http://127.0.0.1:{ports['proxy']}",
        "access_key": ACCESS_KEY,
        "secret_key": SECRET_KEY,
        "region": REGION,
    }


def _check_xattrs(folder: Path) -> None:
    try:
        os.setxattr(folder, "user.tarpon", b"1")
    except OSError as error:
        raise process.ServerError(
            f"{folder.parent}: {errno.errorcode.get(error.errno or 0, error)} on setting a user "
            "xattr, expected a file system that keeps them (ext4, xfs, btrfs); set TMPDIR to a "
            "folder on one"
        ) from error


if __name__ == "__main__":
    process.keep(start)
