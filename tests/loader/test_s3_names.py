"""Names of shards in buckets and on web servers: the same as in a folder, and never a secret."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
import tarpon
from tarpon import _remote, cli
from tarpon._s3 import S3
from tarpon._shards import resolve, shown

from tests.loader.tars import samples, write_tar
from tests.servers.fixtures import WebServers
from tests.servers.s3 import Bucket, S3Server

FILES = [
    *("a.tar", "b0.tar", "b[0].tar", "b{1,2}.tar", "c*.tar", ".hidden.tar", "notes.txt"),
    *("x/1.tar", "x/.2.tar", "x/deep/1.tar", "x-y/1.tar", ".hidden/1.tar"),
]
PATTERNS = [
    *("*.tar", "?.tar", "[ab]*.tar", "[!a]*.tar", "b[0].tar", "c*.tar", "*", "x/*", ".*.tar"),
    *("*/1.tar", "**/1.tar", "**/*.tar", "x/**", "**", "x*/**/1.tar", ".hidden/*.tar"),
    *("{x,x-y}/*.tar", "{a,b0}.tar", "a.tar", "x", "x/", "", "none-*.tar", "nowhere"),
]
SECRET = "hunter2"


@pytest.fixture
def both(s3_environment: S3Server, tmp_path: Path) -> tuple[str, str]:
    """The same files in a folder and in a bucket, where folders have the markers of consoles."""
    bucket = s3_environment.bucket()
    for number, name in enumerate(FILES):
        path = tmp_path / "p" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(number))
        bucket.put(f"p/{name}", bytes(number))
    for name in ("p/", "p/x/"):
        bucket.put(name, b"")
    return str(tmp_path / "p"), f"{bucket.url}/p"


def names(base: str, pattern: str) -> list[str] | str:
    try:
        return [shard.path.removeprefix(base) for shard in resolve(f"{base}/{pattern}")]
    except tarpon.StoreError:
        return "nothing"


def test_patterns_name_the_same_in_the_same_order(both: tuple[str, str]) -> None:
    local, remote = both
    found = {pattern: names(remote, pattern) for pattern in PATTERNS}
    assert found == {pattern: names(local, pattern) for pattern in PATTERNS}
    assert found["*/1.tar"] == ["/x/1.tar", "/x-y/1.tar"]  # by bytes, "x-y/" is before "x/"
    assert [found[pattern] for pattern in ("none-*.tar", "nowhere")] == ["nothing"] * 2


def test_listings_bring_sizes_and_etags(both: tuple[str, str]) -> None:
    for shards in (both[1], f"{both[1]}/*.tar"):
        found = {Path(shard.path).name: shard for shard in resolve(shards)}
        assert found["b[0].tar"].bytes == FILES.index("b[0].tar")
        assert all(shard.etag and shard.etag.startswith('"') for shard in found.values())


def test_listings_go_page_by_page_and_no_deeper_than_asked(both: tuple[str, str]) -> None:
    s3, url = S3.of(None), f"{both[1]}/"
    every = [item.url.removeprefix(url) for item in s3.list(url, page=2)]
    assert every == sorted(FILES)
    assert every == [item.url.removeprefix(url) for item in s3.list(url)]
    flat = [item.url.removeprefix(url) for item in s3.list(url, deep=False, page=2)]
    assert flat == [name for name in sorted(FILES) if "/" not in name]


def test_urls_in_lists(s3_environment: S3Server, s3_bucket: Bucket, tmp_path: Path) -> None:
    """Relative to the list, without dot segments; those with a scheme stay as they are."""
    urls = {
        "a b%20+#?.tar": f"{s3_bucket.url}/v/a b%20+#?.tar",
        "./x/../b.tar": f"{s3_bucket.url}/v/b.tar",
        "../c.tar": f"{s3_bucket.url}/c.tar",
        f"file://{tmp_path}/d.tar": f"{tmp_path}/d.tar",
        "s3://other/e.tar": "s3://other/e.tar",
        "https://host/f.tar?sig=1": "https://host/f.tar",
    }
    document = {"shardlist": [{"url": url, "nsamples": 1} for url in urls]}
    s3_bucket.put("v/train.json", json.dumps(document).encode())
    shards = resolve(f"{s3_bucket.url}/v/train.json")
    assert [shard.path for shard in shards] == list(urls.values())
    assert [shard.url for shard in shards] == [None] * 5 + ["https://host/f.tar?sig=1"]
    document = {"shardlist": [{"url": "../../a.tar", "nsamples": 1}]}
    s3_bucket.put("v/train.json", json.dumps(document).encode())
    with pytest.raises(tarpon.StoreError, match="leaves the bucket; correct the shard list"):
        resolve(f"{s3_bucket.url}/v/train.json")


def test_http_urls_are_as_written_but_for_what_no_url_may_hold(
    web_server: WebServers, tmp_path: Path
) -> None:
    """And the fingerprint is that of the same files in a folder."""
    files = {
        "a b.tar": "a b.tar",
        "50%.tar": "50%25.tar",
        "é:1.tar": "é:1.tar",
        "q.tar": "q.tar?x=1",
    }
    for name in files:
        write_tar(tmp_path / name, samples(range(2)))
    entries = [{"url": url, "nsamples": 2} for url in files.values()]
    (tmp_path / "train.json").write_text(json.dumps({"shardlist": entries}))
    remote = tarpon.open(f"{web_server(tmp_path).url}/train.json?sig=1")
    local = tarpon.open([tmp_path / name for name in files])
    assert [remote.key(n) for n in range(8)] == [local.key(n) for n in range(8)]
    assert remote.fingerprint == local.fingerprint


@pytest.mark.parametrize(
    ("shards", "message"),
    [
        (f"https://u:{SECRET}@host/a{{.tar?sig={SECRET}", "https://host/a{.tar: unbalanced"),
        (f"https://u:{SECRET}@host:port/a.tar", r"https://\.\.\.: not a URL"),
        (f"s3://AKID:{SECRET}@bucket/a.tar", r"s3://\.\.\.: not the name of a bucket"),
        (f"s3://AKID:{SECRET}@bucket/a{{.tar", "not the name of a bucket"),
        (f"https://host/folder/?sig={SECRET}", "cannot be listed"),
        (f"gs://u:{SECRET}@bucket/a.tar", "gs://bucket/a.tar: gs:// is not supported"),
        (Path("s3://bucket/a.tar"), "s3:/: one slash, expected s3://; a Path loses one"),
    ],
)
def test_names_that_are_refused(shards: str | Path, message: str) -> None:
    with pytest.raises(tarpon.StoreError, match=message) as caught:
        resolve(shards)
    assert SECRET not in str(caught.value)


def test_what_is_shown_of_shards() -> None:
    url = f"https://u:{SECRET}@host/a.tar?sig={SECRET}"
    assert shown(f"b.tar::{url}") == "'b.tar::https://host/a.tar'"
    assert shown([Path("b.tar"), url]) == "['b.tar', 'https://host/a.tar']"
    assert SECRET not in repr(resolve(f"{url}::{url}"))
    parts = ["http://[2001:db8::1]:80/a.tar", "http://[::1]/b.tar"]
    assert [shard.path for shard in resolve("::".join(parts))] == parts


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"endpoint": f"ftp://u:{SECRET}@host"}, "endpoint: not a URL"),
        ({"endpoint": f"https://u:{SECRET}@host"}, "endpoint: has a user or password"),
        ({"endpoint": f"https://host?{SECRET}"}, "endpoint: not a URL"),
        ({"endpoint": 3}, "endpoint: not a URL"),
        ({"region": "EU Central"}, "region='EU Central', expected a name"),
        ({"profile": ""}, "profile='', expected a str"),
        ({"unsigned": 1}, "unsigned=1, expected True or False"),
        ({"unsigned": True, "requester_pays": True}, "expected one: who pays must sign"),
        ({"addressing": "host"}, "addressing='host', expected"),
        ({"connections": True}, "connections=True, expected 1 to 1024"),
        ({"connections": "4"}, "connections='4', expected 1 to 1024"),
    ],
)
def test_stores_that_cannot_be(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        tarpon.Store(**options)  # type: ignore[arg-type]
    assert SECRET not in str(caught.value)


def test_an_environment_that_changes_is_heard(
    s3_environment: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = S3.of(None)
    assert S3.of(tarpon.Store()) is first
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    assert S3.of(None).sign("s3://bucket/k")[0].startswith("http://127.0.0.1:9/bucket/k?")


def test_a_child_of_a_fork_has_an_s3_of_its_own(
    s3_environment: S3Server, s3_bucket: Bucket
) -> None:
    mine = S3.of(None)
    mine.sign(f"{s3_bucket.url}/a.tar")
    with S3._making:  # as another thread might hold it
        pid = os.fork()
    if pid == 0:
        own = S3.of(None)
        good = own is not mine and own.sign(f"{s3_bucket.url}/a.tar")[0].startswith("http")
        os._exit(0 if good else 1)
    assert os.waitpid(pid, 0)[1] == 0


@pytest.mark.parametrize(
    "document",
    [
        {"shardlist": [{"url": f"https://u:{SECRET}@h/a.tar?sig={SECRET}"}]},
        {"datasets": [{"source": f"https://h/a.json?sig={SECRET}"}]},
        {"shardlist": [], "datasets": {"url": f"https://u:{SECRET}@h/a.json"}},
        {"base": [f"https://h/p?{SECRET}"], "shardlist": []},
    ],
)
def test_bad_shard_lists_are_shown_without_secrets(document: object, tmp_path: Path) -> None:
    path = tmp_path / "train.json"
    path.write_text(json.dumps(document))
    with pytest.raises(tarpon.CorruptShardError, match=r"https://h/") as caught:
        resolve(path)
    assert SECRET not in str(caught.value)


def test_keys_with_dots_for_folders(s3_environment: S3Server) -> None:
    """They are no folders to S3: libcurl would leave them out, and the signature be another's."""
    bucket = s3_environment.bucket()
    for key in ("a/./b.json", "a/../b.json"):
        bucket.put(f"dots/{key}", b'{"shardlist": []}')
        with pytest.raises(tarpon.StoreError, match="names no tar"):  # it was read
            resolve(f"{bucket.url}/dots/{key}")


def test_a_tar_with_another_ending(both: tuple[str, str]) -> None:
    [found] = resolve(f"{both[1]}/notes.txt")
    assert (found.path, found.bytes) == (f"{both[1]}/notes.txt", FILES.index("notes.txt"))
    assert found.etag


@pytest.mark.parametrize("place", ["", "/", "/*.tar", "/a*/b.tar", "/[ab].tar?x=1", "/x/?x=1"])
def test_web_servers_are_not_listed(place: str) -> None:
    for host in ("https://host", "http://[::1]:80"):
        with pytest.raises(tarpon.StoreError, match="cannot be listed, expected a tar") as caught:
            resolve(host + place)
        assert "x=1" not in str(caught.value)


def test_nothing_is_indexed_if_one_shard_is_remote(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", samples([1]))
    with pytest.raises(tarpon.StoreError, match=r"s3://b/a\.tar: a remote tar"):
        tarpon.index([tar, "s3://b/a.tar"])
    assert cli.main(["index", str(tar), "s3://b/a.tar"]) == 2
    assert not (tmp_path / "a.idx").exists()


@pytest.mark.parametrize("timeout_s", [float("inf"), 1e9])
def test_waiting_for_ever_is_a_time_out_like_any_other(timeout_s: float) -> None:
    assert _remote.client(None, timeout_s) is _remote.client(tarpon.Store(), 1e6)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_child_of_a_fork_does_not_wait_for_a_thread_that_is_not_there() -> None:
    with _remote._lock:  # as if another thread made a client just now
        pid = os.fork()
        if pid == 0:
            signal.alarm(20)
            _remote.client(None)
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_credentials_that_cannot_be_renewed_serve_until_they_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(bucket: str) -> None:
        raise ConnectionError

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    store = tarpon.Store(endpoint="http://127.0.0.1:9", region="us-east-1")  # nobody is asked
    s3, now = S3(store), time.time()
    expires_s = s3.sign("s3://bucket/a.tar")[1]
    monkeypatch.setattr(s3, "_new_signer", refuse)
    for later_s in (40, 80, expires_s - now - 1):
        monkeypatch.setattr(time, "time", lambda at=now + later_s: at)
        assert s3.sign("s3://bucket/b.tar")[1] == expires_s
    monkeypatch.setattr(time, "time", lambda: expires_s)
    with pytest.raises(tarpon.StoreError, match="ConnectionError, expected a signed URL"):
        s3.sign("s3://bucket/b.tar")
