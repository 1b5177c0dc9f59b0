"""Shards on a web server: plain, over TLS, through a redirect and a proxy from the environment."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path

import pytest
import tarpon

from tests.loader.tars import write_tar
from tests.servers.fixtures import WebServers

FIELDS = {"label": tarpon.Int("cls")}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "web"
    folder.mkdir()
    for number in range(3):
        write_tar(
            folder / f"train-{number:06}.tar",
            [(f"{number}{n:02}.cls", b"%d" % n) for n in range(9)],
        )
    tarpon.index(folder)
    names = sorted(path.name for path in folder.glob("*.tar"))
    shards = [{"url": name, "nsamples": 9} for name in names]
    (folder / "train.json").write_text(json.dumps({"wids_version": 1, "shardlist": shards}))
    return folder


def labels(shards: str, store: tarpon.Store | None = None) -> list[int]:
    with tarpon.Loader(shards, batch_size=9, fields=FIELDS, store=store, timeout_s=20) as loader:
        return [int(label) for batch in loader for label in batch["label"]]


@pytest.mark.parametrize("shards", ["train.json", "train-{000000..000002}.tar", "train-000001.tar"])
def test_the_same_as_from_the_folder(folder: Path, web_server: WebServers, shards: str) -> None:
    server = web_server(folder)
    assert labels(f"{server.url}/{shards}") == labels(str(folder / shards))


def test_certificates_are_checked(folder: Path, web_server: WebServers) -> None:
    server = web_server(folder, tls=True)
    trusting = tarpon.Store(ca_bundle=str(server.authority))
    assert labels(f"{server.url}/train.json", trusting) == labels(str(folder / "train.json"))
    began = time.monotonic()
    with pytest.raises(tarpon.StoreError, match="name the certificates to trust in AWS_CA_BUNDLE"):
        labels(f"{server.url}/train.json")
    assert time.monotonic() - began < 5


def test_folders_and_globs_cannot_be_listed(folder: Path, web_server: WebServers) -> None:
    server = web_server(folder)
    for shards in ("", "train-*.tar"):
        with pytest.raises(tarpon.StoreError, match="cannot be listed"):
            labels(f"{server.url}/{shards}")


@pytest.mark.slow
def test_a_server_that_is_not_there_is_given_up_soon() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://user:pass-word@127.0.0.1:{taken.getsockname()[1]}/x.tar?sig=hidden"
        began = time.monotonic()
        with pytest.raises(tarpon.TarponError) as error:
            tarpon.open(url)
    assert time.monotonic() - began < 60  # of the 540 s that a host which answered once is given
    assert "check the endpoint and the network" in str(error.value)
    assert "pass-word" not in str(error.value)
    assert "hidden" not in str(error.value)


def test_a_shard_that_is_replaced_is_an_error_that_names_it(
    folder: Path, web_server: WebServers
) -> None:
    server = web_server(folder)
    dataset = tarpon.open(f"{server.url}/train.json")
    assert dataset[0]["cls"] == b"0"
    tar = folder / "train-000000.tar"
    tar.write_bytes((folder / "train-000001.tar").read_bytes())
    os.utime(tar, (1e9, 1e9))  # nginx's ETags are of seconds and sizes
    with pytest.raises(tarpon.StoreError, match=r"train-000000\.tar: replaced"):
        dataset[1]
