"""Credentials that end while a loader runs: renewed where somebody renews them, else one error."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import tarpon
from tarpon import _s3

from tests.loader.tars import write_tar
from tests.servers.ceph import CephServer

pytestmark = pytest.mark.slow

LIVES_S = 3


@pytest.fixture
def shards(ceph_sts_server: CephServer, tmp_path: Path) -> str:
    """Two shards of sixty samples; only the first few can be read ahead at once."""
    bucket = ceph_sts_server.bucket()
    for number in range(2):
        members = []
        for sample in range(60):
            members.append((f"{number}{sample:03}.cls", b"7"))
            members.append((f"{number}{sample:03}.jpg", bytes([sample]) * 40_000))
        tar = write_tar(tmp_path / f"train-{number:06}.tar", members)
        bucket.put(f"v1/{tar.name}", tar.read_bytes())
        tarpon.index(tar)
        bucket.put(f"v1/{tar.stem}.idx", tar.with_suffix(".idx").read_bytes())
    return f"{bucket.url}/v1"


def loader(shards: str) -> tarpon.Loader:
    return tarpon.Loader(
        shards, batch_size=4, fields={"label": tarpon.Int("cls"), "image": tarpon.Raw("jpg")}
    )


def log_in(server: CephServer, patch: pytest.MonkeyPatch) -> CephServer:
    temporary = server.assume_role(duration_s=LIVES_S)
    temporary.set_environment(patch)
    return temporary


def test_new_credentials_are_taken_up(
    ceph_sts_server: CephServer, shards: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_in(ceph_sts_server, monkeypatch)
    _s3.S3._made.clear()
    dataset = tarpon.open(shards)
    first = dataset[0]
    time.sleep(LIVES_S + 1.5)
    log_in(ceph_sts_server, monkeypatch)  # as a sidecar or a web identity would
    assert dataset[0] == first
    assert dataset[119]["cls"] == b"7"
    with loader(shards) as running:
        assert sum(len(batch["label"]) for batch in running) == 120


def test_ended_credentials_are_one_clear_error(
    ceph_sts_server: CephServer, shards: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = log_in(ceph_sts_server, monkeypatch)
    _s3.S3._made.clear()
    dataset = tarpon.open(shards)
    assert dataset[0]["cls"] == b"7"
    time.sleep(LIVES_S + 1.5)
    with pytest.raises(tarpon.StoreError, match=r"train-000001\.tar: HTTP 403 AccessDenied") as e:
        dataset[119]
    assert "the credentials may not read it" in str(e.value)
    for secret in (temporary.secret_key, temporary.session_token or "none", "X-Amz"):
        assert secret not in str(e.value)
