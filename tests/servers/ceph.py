"""A Ceph Object Gateway on 127.0.0.1, for tests of authentication: AWS's error codes, STS.

    with ceph.running(sts=True) as server:
        temporary = server.assume_role(duration_s=3)    # credentials that do expire

One monitor, one OSD that keeps everything in memory, one gateway; no manager, no systemd; about 2 s
to start. It differs from AWS where it answers 403 AccessDenied, not 400 ExpiredToken, to a token
that has expired; with STS it says AccessDenied too where AWS and a gateway without it name the
reason (InvalidAccessKeyId, SignatureDoesNotMatch); it knows no trailing checksums (2021).
"""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.servers import process
from tests.servers.s3 import S3Server

PROGRAMS = ("radosgw", "radosgw-admin", "ceph-mon", "ceph-osd", "ceph", "ceph-authtool")
INSTALL = "scripts/install_packages.sh servers"
ACCESS_KEY, SECRET_KEY, REGION = "tarpon-tests", "not-a-secret-1234567890", "us-east-1"
ROLE = "reader"
STORE_BYTES = 4 << 30  # what the OSD believes to have; memory is taken as objects are written

# cephx stays on: without it the gateway does not connect. The monitor's default pace of proposals
# makes a start last 12 s; tcp_nodelay spares 40 ms with every small reply.
CONF = """\
[global]
fsid = {fsid}
mon_host = [v2:127.0.0.1:{mon_port}]
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
ms_bind_ipv4 = true
ms_bind_ipv6 = false
keyring = {folder}/keyring
run_dir = {folder}
admin_socket = {folder}/$name.asok
pid_file =
log_file = {folder}/$name.ceph.log
log_to_stderr = false
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 4
osd_pool_default_pgp_num = 4
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
mon_allow_pool_size_one = true
mon_max_pg_per_osd = 1000
mon_data_avail_warn = 1
mon_data_avail_crit = 1
paxos_propose_interval = 0.05
paxos_min_wait = 0.01
mon_client_hunt_interval = 0.5
osd_mon_report_interval = 1
[mon]
mon_data = {folder}/mon
mon_cluster_log_file = {folder}/cluster.log
[osd]
osd_data = {folder}/osd
osd_objectstore = memstore
memstore_device_bytes = {store_bytes}
osd_op_num_shards = 2
osd_op_num_threads_per_shard = 2
osd_max_scrubs = 0
[client]
rgw_frontends = beast endpoint=127.0.0.1:{port} tcp_nodelay=1
rgw_thread_pool_size = 64
rgw_max_concurrent_requests = 256
rgw_enable_usage_log = false
rgw_enable_quota_threads = false
rgw_enable_lc_threads = false
rgw_enable_gc_threads = false
rgw_run_sync_thread = false
rgw_override_bucket_index_max_shards = 1
rgw_dynamic_resharding = false
"""
STS_CONF = """\
rgw_s3_auth_use_sts = true
rgw_sts_key = abcdefghijklmnop
rgw_sts_min_session_duration = 1
"""
CAPS = {
    "mon.": ("mon", "allow *"),
    "client.admin": ("mon", "allow *", "osd", "allow *", "mgr", "allow *"),
    "osd.0": ("mon", "allow profile osd", "osd", "allow *"),
    "client.rgw": ("mon", "allow rwx", "osd", "allow rwx"),
}


@dataclass(frozen=True, kw_only=True)
class CephServer(S3Server):
    """A gateway; `role_arn` names a role that may do everything, where STS is on."""

    role_arn: str | None = None

    def assume_role(self, *, duration_s: int) -> CephServer:
        """The same store with credentials that expire, after a second at the earliest."""
        import boto3
        from botocore.config import Config

        # AWS grants 15 minutes at least, and botocore will not ask for less of its own accord.
        options = self.client_options() | {"config": Config(parameter_validation=False)}
        sts = boto3.session.Session().client("sts", **options)
        keys = sts.assume_role(
            RoleArn=self.role_arn, RoleSessionName="tests", DurationSeconds=duration_s
        )["Credentials"]
        return replace(
            self,
            access_key=keys["AccessKeyId"],
            secret_key=keys["SecretAccessKey"],
            session_token=keys["SessionToken"],
        )


@contextlib.contextmanager
def running(*, sts: bool = False) -> Iterator[CephServer]:
    """A gateway of its own, empty. Raises ServerError."""
    with process.running(__name__, sts=sts) as facts:
        yield CephServer(**facts)


def shared(folder: Path, watch: int, *, sts: bool = False) -> CephServer:
    """As `process.shared`."""
    return CephServer(**process.shared(__name__, folder, watch, sts=sts))


def start(keeper: process.Keeper, options: process.Facts) -> process.Facts:
    process.need(PROGRAMS, INSTALL)
    sts = bool(options.get("sts", False))
    mon_port, port = process.free_ports(2)
    cluster = Cluster(keeper, mon_port, port, sts)
    cluster.start_monitor()
    cluster.start_osd()
    role_arn = cluster.start_gateway()
    return {
        "endpoint": f"http://127.0.0.1:{port}",
        "access_key": ACCESS_KEY,
        "secret_key": SECRET_KEY,
        "region": REGION,
        "role_arn": role_arn,
    }


class Cluster:
    """The steps of a start, in the order of the methods."""

    def __init__(self, keeper: process.Keeper, mon_port: int, port: int, sts: bool) -> None:
        self.keeper, self.mon_port, self.port, self.sts = keeper, mon_port, port, sts
        self.fsid = str(uuid.uuid4())
        self.conf = keeper.folder / "ceph.conf"
        text = CONF.format(
            fsid=self.fsid,
            mon_port=mon_port,
            port=port,
            folder=keeper.folder,
            store_bytes=STORE_BYTES,
        )
        self.conf.write_text(text + (STS_CONF if sts else ""))
        for name in ("mon", "osd"):
            (keeper.folder / name).mkdir()

    def start_monitor(self) -> None:
        keyring, monmap = self.keeper.folder / "keyring", self.keeper.folder / "monmap"
        self.keeper.run("ceph-authtool", "--create-keyring", keyring)
        for name, words in CAPS.items():
            caps = [
                argument
                for at in range(0, len(words), 2)
                for argument in ("--cap", words[at], words[at + 1])
            ]
            self.keeper.run("ceph-authtool", keyring, "--gen-key", "-n", name, *caps)
        address = f"[v2:127.0.0.1:{self.mon_port}]"
        created = ("--create", "--clobber", "--fsid", self.fsid, "--addv", "a", address)
        self.keeper.run("monmaptool", *created, monmap)
        made = ("--mkfs", "--monmap", monmap, "--keyring", keyring)
        self.run("ceph-mon", "-i", "a", *made)
        self.spawn("ceph-mon", "-f", "-i", "a")
        self.keeper.wait_until(
            lambda: process.answers(self.mon_port) and self.says("mon stat") is not None,
            "answer of the monitor",
        )

    def start_osd(self) -> None:
        osd = str(uuid.uuid4())
        self.run("ceph", "osd", "new", osd, "0")
        self.run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd)
        self.spawn("ceph-osd", "-f", "-i", "0")
        self.keeper.wait_until(lambda: "1 up" in (self.says("osd stat") or ""), "OSD that is up")

    def start_gateway(self) -> str | None:
        """Start it for a user, and a role if there is STS; the role's ARN."""
        self.run(
            "radosgw-admin",
            *("user", "create", "--uid=tests", "--display-name=tests"),
            "--caps=roles=*;user-policy=*",
            f"--access-key={ACCESS_KEY}",
            f"--secret-key={SECRET_KEY}",
        )
        role_arn = self.make_role() if self.sts else None
        self.spawn("radosgw", "-f", "-n", "client.rgw")
        self.keeper.wait_until(lambda: process.answers(self.port), "answer of the gateway")
        return role_arn

    def make_role(self) -> str:
        who = {"AWS": ["arn:aws:iam:::user/tests"]}
        trust = _policy(Principal=who, Action=["sts:AssumeRole"])
        rights = _policy(Action=["s3:*"], Resource="arn:aws:s3:::*")
        self.run(
            *("radosgw-admin", "role", "create", f"--role-name={ROLE}"),
            *("--path=/", f"--assume-role-policy-doc={trust}"),
        )
        self.run(
            *("radosgw-admin", "role-policy", "put", f"--role-name={ROLE}"),
            *("--policy-name=all", f"--policy-doc={rights}"),
        )
        return f"arn:aws:iam:::role/{ROLE}"

    def run(self, program: str, *arguments: str | Path) -> str:
        return self.keeper.run(program, "-c", self.conf, *arguments)

    def says(self, question: str) -> str | None:
        with contextlib.suppress(process.ServerError):
            return self.run("ceph", "--connect-timeout", "2", *question.split())
        return None

    def spawn(self, program: str, *arguments: str | Path) -> None:
        self.keeper.spawn(program, program, "-c", self.conf, *arguments)


def _policy(**statement: Any) -> str:
    allowed = {"Effect": "Allow"} | statement
    return json.dumps({"Version": "2012-10-17", "Statement": [allowed]})


if __name__ == "__main__":
    process.keep(start)
