"""The handler: the scores of the batch job, whatever is sent, and never more than it can hold."""

from __future__ import annotations

import base64
import contextlib
import http.client
import io
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pyarrow.parquet as pq
import pytest
import tarpon
from PIL import Image

from components.predict import handler as module
from components.predict import images, run, server
from components.predict.handler import Handler, Reply, RequestError
from tests.components import blobs, colours
from tests.components.test_predict import write_tar

ROOT = Path(__file__).resolve().parents[2]
PREDICT, INFER = "/v1/models/colours:predict", "/v2/models/colours/infer"
RED = blobs.picture("red", 2)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return colours.save(tmp_path_factory.mktemp("colours") / "model")


@pytest.fixture(scope="module")
def handler(model: str, empty_database: Path) -> Handler:
    made = Handler(model, name="colours", device="cpu", max_images=4, max_pixels=100_000)
    before = mlflow.get_tracking_uri()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{empty_database}")
        made.load()
    mlflow.set_tracking_uri(before)
    return made


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 255, (9, 9, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def turned(image: Image.Image, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(image, "JPEG", quality=95, exif=exif)


def claims(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header promises this many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IEND", b"")


# ---- the same scores -----------------------------------------------------------------------------

PHOTOS = {
    "a.jpg": encoded(noise(200, 120), "JPEG", quality=95),
    "b.jpg": encoded(noise(37, 90, 1), "JPEG", quality=95, progressive=True),
    "c.jpg": turned(noise(120, 50, 2), 6),
    "d.jpg": encoded(noise(64, 64, 3).convert("L"), "JPEG"),
    "e.jpg": encoded(noise(64, 50, 4).convert("CMYK"), "JPEG"),
    "f.png": encoded(noise(90, 55, 5), "PNG"),
    "g.png": encoded(noise(90, 55, 6).convert("RGBA"), "PNG"),
    "h.webp": encoded(noise(50, 70, 7), "WEBP"),
    "i.gif": encoded(noise(50, 70, 8), "GIF"),
    "j.jpg": encoded(noise(8, 8, 9), "JPEG"),
}


def test_images_get_the_pixels_that_the_loader_makes(tmp_path: Path) -> None:
    write_tar(tmp_path / "photos.tar", PHOTOS)
    crop = {"image": tarpon.CenterCrop(32)}
    with tarpon.Loader(
        str(tmp_path / "photos.tar"), batch_size=len(PHOTOS), fields=crop, shuffle=False
    ) as loader:
        (batch,) = list(loader)
        for (name, data), theirs in zip(PHOTOS.items(), batch["image"], strict=True):
            ours = images.pixels(data, 32)
            difference = np.abs(ours.astype(int) - theirs.astype(int))
            assert difference.mean() < (1 if name.endswith(".jpg") else 1e-9), name


def test_the_batch_job_the_handler_and_both_protocols_agree(
    model: str, handler: Handler, tmp_path: Path, tracking: str
) -> None:
    write_tar(tmp_path / "photos.tar", PHOTOS)
    run.predict(str(tmp_path / "photos.tar"), model_uri=model, output=str(tmp_path / "out"))
    table = pq.read_table(tmp_path / "out" / "part-000000.parquet").to_pydict()
    batch = np.array(table["probabilities"])
    ours = np.concatenate([handler.scores([data]) for data in PHOTOS.values()])
    assert np.abs(ours - batch).max() < 0.01  # JPEGs are resized by other code: a grey level
    for row, (name, data) in enumerate(PHOTOS.items()):
        if not name.endswith(".jpg"):
            assert np.abs(ours[row] - batch[row]).max() < 1e-4, name
        reply = handler.respond("POST", PREDICT, "image/jpeg", data)
        (one,) = reply.body["predictions"]
        assert one["predicted"] == table["predicted"][row]
        asked = {
            "inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "data": [b64(data)]}]
        }
        outputs = handler.respond("POST", INFER, "", json.dumps(asked).encode()).body["outputs"]
        assert outputs[0]["data"] == [one["predicted"]]
        assert outputs[1]["data"] == list(one["probabilities"].values())


def test_predict_takes_bytes_and_base64(handler: Handler) -> None:
    first, second = handler.predict([RED, b64(RED)])
    assert first == second
    assert (first["predicted"], first["probability"]) == ("red", first["probabilities"]["red"])


# ---- requests ------------------------------------------------------------------------------------


def post(handler: Handler, path: str, asked: Any) -> Reply:
    body = asked if isinstance(asked, bytes) else json.dumps(asked).encode()
    return handler.respond("POST", path, "application/json", body)


def test_what_it_says_of_itself(handler: Handler, model: str) -> None:
    assert handler.respond("GET", "/", "", b"").status == 200
    assert handler.respond("GET", "/v2/health/ready", "", b"") == Reply(200, {"ready": True})
    for path in ("/v1/models/colours", "/v2/models/colours/ready"):
        assert handler.respond("GET", path, "", b"").body == {"name": "colours", "ready": True}
    about = handler.respond("GET", "/v2/models/colours", "", b"").body
    assert about["parameters"]["classes"] == blobs.CLASSES
    assert about["outputs"][1]["shape"] == [-1, 3]
    assert handler.respond("GET", "/v2/models/other", "", b"").status == 404
    assert handler.respond("GET", PREDICT, "", b"").status == 405
    assert handler.respond("DELETE", INFER, "", b"").status == 405
    fresh = Handler(model)
    assert fresh.respond("GET", "/v2/health/live", "", b"").status == 200
    assert fresh.respond("GET", "/v2/health/ready", "", b"").status == 503
    assert fresh.respond("POST", PREDICT, "", b"{}").status == 503


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "0 bytes that are no image"),
        (b"hello", "5 bytes that are no image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "no image, expected one of JPEG, PNG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no image"),
        (RED[:-200], "Premature end of JPEG file"),
        (RED[:2], "no image"),
        (b"\xff\xd8\xff" + b"\0" * 100, "no image"),
        (claims(60_000, 60_000), "decompression bomb"),
        (claims(400, 400), "found 400 x 400 pixels, expected 100000 at most; send a smaller"),
        (claims(300, 300), "expected an image"),
        (claims(0, 5), "no image"),
        (encoded(noise(50, 50), "PNG")[:-60], "expected an image"),
    ],
    ids=range(12),
)
def test_what_is_no_image_is_named(handler: Handler, data: bytes, why: str) -> None:
    reply = post(handler, PREDICT, {"instances": [{"b64": b64(RED)}, {"b64": b64(data)}]})
    assert reply.status == 400
    assert reply.body["error"].startswith("image 1: ")
    assert why in reply.body["error"]


@pytest.mark.parametrize(
    ("path", "asked", "status", "why"),
    [
        (PREDICT, b"", 400, "found 0 bytes of application/json that are not JSON"),
        (PREDICT, b"\xff\xfe", 400, "or one image's bytes as Content-Type image/"),
        (PREDICT, b"[" * 100_000, 400, "that are not JSON"),
        (PREDICT, b"9" * 5000, 400, "that are not JSON"),
        (PREDICT, [], 400, "found a JSON list, expected an object"),
        (PREDICT, {"inputs": []}, 400, "found the keys ['inputs'], expected {\"instances\""),
        (PREDICT, {"instances": {}}, 400, "found the keys"),
        (PREDICT, {"instances": []}, 400, "found no images"),
        (PREDICT, {"instances": [{"b64": 7}]}, 400, "image 0: found no base64 text"),
        (PREDICT, {"instances": [[1, 2]]}, 400, "image 0: found no base64 text"),
        (PREDICT, {"instances": ["*&^"]}, 400, "image 0: found 3 characters that are not base64"),
        (PREDICT, {"instances": ["é"]}, 400, "image 0: found 1 characters that are not base64"),
        (PREDICT, {"instances": [b64(RED)] * 5}, 413, "found 5 images, expected 4 at most"),
        (INFER, {"inputs": 3}, 400, "found the keys ['inputs'], expected {\"inputs\""),
        (INFER, {"inputs": [None]}, 400, "found the keys"),
        (INFER, {"inputs": [{"datatype": "FP32", "data": [1]}]}, 400, "found the keys"),
        (INFER, {"inputs": [{"datatype": "BYTES", "data": ["A"], "shape": [2]}]}, 400, "`shape`"),
        (INFER, {"inputs": [{"datatype": "BYTES", "data": [1], "shape": [1]}]}, 400, "not base64"),
    ],
    ids=range(18),
)
def test_what_is_no_request(handler: Handler, path: str, asked: Any, status: int, why: str) -> None:
    reply = post(handler, path, asked)
    assert reply.status == status
    assert why in reply.body["error"]
    assert len(reply.body["error"]) < 400  # nobody's input comes back whole


def test_lambda_events(model: str, monkeypatch: pytest.MonkeyPatch, tracking: str) -> None:
    monkeypatch.setattr(module, "_shared", None)
    monkeypatch.delenv("TARPON_MODEL", raising=False)
    with pytest.raises(RequestError, match="TARPON_MODEL: not set, expected the model's URI"):
        module.lambda_handler({"instances": []}, None)
    monkeypatch.setenv("TARPON_MODEL", model)
    monkeypatch.setenv("TARPON_MODEL_NAME", "colours")
    direct = module.lambda_handler({"instances": [{"b64": b64(RED)}]}, None)
    assert direct["predictions"][0]["predicted"] == "red"
    with pytest.raises(RequestError, match="image 0"):
        module.lambda_handler({"instances": ["AAAA"]}, None)
    text = json.dumps({"instances": [b64(RED)]})
    gateway = {"httpMethod": "POST", "path": PREDICT, "headers": None, "body": text}
    url = {
        "requestContext": {"http": {"method": "POST"}},
        "rawPath": PREDICT,
        "headers": {"Content-Type": "image/jpeg"},
        "body": b64(RED),
        "isBase64Encoded": True,
    }
    for event in (gateway, url):
        answer = module.lambda_handler(event, None)
        assert answer["statusCode"] == 200
        assert json.loads(answer["body"]) == direct
    for broken in ({"body": "{"}, {"body": "é", "isBase64Encoded": True}, {"body": None}):
        assert module.lambda_handler(gateway | broken, None)["statusCode"] == 400


# ---- over HTTP -----------------------------------------------------------------------------------


class Slow(Handler):
    """Holds each POST until it is let go."""

    def __init__(self, real: Handler) -> None:
        self.real, self.go = real, threading.Event()

    def respond(self, method: str, path: str, content_type: str, body: bytes) -> Reply:
        if method == "POST":
            self.go.wait(60)
        return self.real.respond(method, path, content_type, body)


@contextlib.contextmanager
def serving(app: server.App) -> Iterator[int]:
    """The real server on a thread; yields its port."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        http_server = server.http_server(app)
        thread = threading.Thread(target=http_server.run, args=([listening],))
        thread.start()
        try:
            yield listening.getsockname()[1]
        finally:
            http_server.should_exit = True
            thread.join()


def test_a_taken_port_is_said_and_ctrl_c_is_heard_while_the_model_is_fetched(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.logging, "basicConfig", lambda **_: None)  # it outlives the test
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert server.main(["--model", "models:/nobody@champion", "--port", str(port)]) == 1
    said = capsys.readouterr().err
    assert f"--host 127.0.0.1 --port {port}: [Errno 98] Address already in use, expected" in said

    def interrupted(_: Handler) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Handler, "load", interrupted)
    assert server.main(["--model", "models:/nobody@champion", "--port", "0"]) == 130
    with pytest.raises(SystemExit):
        server.main(["--model", "models:/nobody@champion", "--port", "80930"])


def until(condition: Any) -> None:
    while not condition():
        time.sleep(0.01)


def ask(port: int, body: bytes | None = RED, **headers: str) -> tuple[int, Any, dict[str, Any]]:
    """Status, headers and body of the answer to one image."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    with contextlib.closing(connection):
        kind = {"Content-Type": "image/jpeg", **headers}
        method, path = ("GET", "/v2/health/ready") if body is None else ("POST", PREDICT)
        connection.request(method, path, body, kind)
        answer = connection.getresponse()
        return answer.status, answer.headers, json.loads(answer.read())


def test_what_is_beyond_queue_and_threads_is_told_to_come_again(handler: Handler) -> None:
    slow = Slow(handler)
    app = server.App(slow, concurrency=1, queue=1)
    with serving(app) as port:
        found: list[int] = []
        threads = [threading.Thread(target=lambda: found.append(ask(port)[0])) for _ in range(2)]
        for thread in threads:
            thread.start()
        until(lambda: app.admitted == 2)
        status, headers, body = ask(port)
        assert (status, headers["Retry-After"]) == (503, "1")
        assert body == {"error": "2 requests run or wait; try again"}
        assert ask(port, None)[0] == 200  # health is answered all the same
        slow.go.set()
        for thread in threads:
            thread.join()
        assert found == [200, 200]
        assert ask(port)[0] == 200


def test_bodies_that_are_too_large_or_never_come(handler: Handler) -> None:
    app = server.App(handler, max_body_bytes=len(RED), body_timeout_s=0.3)
    head = f"POST {PREDICT} HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\n".encode()
    with serving(app) as port:

        def raw(*pieces: bytes) -> bytes:
            with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
                client.sendall(head + b"".join(pieces))
                return client.makefile("rb").readline()

        assert ask(port)[0] == 200
        promised = b"Content-Length: %d\r\n\r\n"
        assert b" 413 " in raw(promised % (len(RED) + 1))
        assert b" 413 " in raw(promised % 10**12)
        chunks = b"Transfer-Encoding: chunked\r\n\r\n" + b"400\r\n" + b"x" * 1024 + b"\r\n"
        assert b" 413 " in raw(chunks, b"400\r\n" + b"x" * 1024 + b"\r\n")
        assert b" 408 " in raw(promised % 100, b"half")
        assert b" 400 " in raw(b"Content-Length: minus\r\n\r\n")
        with socket.create_connection(("127.0.0.1", port)) as client:  # and one that hangs up
            client.sendall(head + promised % 100 + b"half")
        until(lambda: app.admitted == 0)
        assert ask(port)[0] == 200


def test_who_sends_a_large_body_to_its_end_still_gets_the_refusal(handler: Handler) -> None:
    with serving(server.App(handler, max_body_bytes=8 << 20)) as port:
        status, headers, body = ask(port, bytes(30 << 20))
    assert (status, headers["Connection"]) == (413, "close")
    assert body == {"error": f"found {30 << 20} bytes, expected {8 << 20} at most"}


def test_the_example_asks_and_waits_where_it_is_told_to(handler: Handler, tmp_path: Path) -> None:
    (tmp_path / "rose.jpg").write_bytes(RED)
    (tmp_path / "notes.jpg").write_bytes(b"hello")
    refusals = [503]

    class Busy(server.App):
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            self._most = 0 if refusals and refusals.pop() else 8
            await super().__call__(scope, receive, send)

    with serving(Busy(handler)) as port:
        words = [sys.executable, "examples/ask_handler.py", f"http://127.0.0.1:{port}", "colours"]
        rose, notes = str(tmp_path / "rose.jpg"), str(tmp_path / "notes.jpg")
        good = subprocess.run([*words, rose, rose], cwd=ROOT, capture_output=True, text=True)
        bad = subprocess.run([*words, rose, notes], cwd=ROOT, capture_output=True, text=True)
    assert (good.returncode, refusals) == (0, [])
    assert [line.split(" (")[0] for line in good.stdout.splitlines()] == [f"{rose}: red"] * 2
    assert bad.returncode == 1
    assert "400: image 1: found 5 bytes that are no image" in bad.stderr


def test_our_own_bug_tells_nothing(handler: Handler, caplog: pytest.LogCaptureFixture) -> None:
    slow = Slow(handler)
    slow.go.set()
    slow.real = None  # type: ignore[assignment]
    app = server.App(slow)
    with serving(app) as port, pytest.MonkeyPatch.context() as patch:
        patch.setattr(slow, "real", type("Broken", (), {"respond": lambda *_: 1 / 0})())
        status, _, body = ask(port)
    assert (status, "its log says why" in body["error"]) == (500, True)
    assert "ZeroDivisionError" in caplog.text


# ---- real processes ------------------------------------------------------------------------------


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
        return port


@contextlib.contextmanager
def process(
    words: list[str], folder: Path, port: int, path: str
) -> Iterator[subprocess.Popen[str]]:
    """A server that answers at `path`; ended with all its children."""
    bins = str(Path(sys.executable).parent)
    found = {"PYTHONPATH": str(ROOT), "PATH": f"{bins}:{os.environ['PATH']}"}
    with (folder / "server.log").open("w+") as log:
        started = subprocess.Popen(
            words, cwd=folder, env=os.environ | found, stderr=log, stdout=log, text=True,
            start_new_session=True,
        )  # fmt: skip
        try:
            while True:
                assert started.poll() is None, (folder / "server.log").read_text()
                with contextlib.suppress(OSError):
                    urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10).close()
                    break
                time.sleep(0.1)
            yield started
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(started.pid, signal.SIGKILL)
            started.wait()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_request_that_was_accepted_is_answered_after_sigterm(
    model: str, tmp_path: Path, tracking: str
) -> None:
    port = free_port()
    words = [sys.executable, "-m", "components.predict.handler", "--model", model]
    words += ["--port", str(port), "--name", "colours", "--threads", "1", "--device", "cpu"]
    with process(words, tmp_path, port, "/v2/health/ready") as started:
        head = f"POST {PREDICT} HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\n"
        head += f"Content-Length: {len(RED)}\r\nExpect: 100-continue\r\n\r\n"
        with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
            answer = client.makefile("rb")
            client.sendall(head.encode())
            assert b" 100 " in answer.readline()  # it is admitted, and waits for its body
            answer.readline()
            started.send_signal(signal.SIGTERM)
            with contextlib.suppress(OSError):
                while True:
                    socket.create_connection(("127.0.0.1", port), timeout=60).close()
                    time.sleep(0.01)
            client.sendall(RED)
            assert b" 200 " in answer.readline()
            assert b'"predicted": "red"' in answer.read()
        assert started.wait() == 0


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_mlflow_models_serve_gives_the_scores_of_the_batch_job(
    model: str, tmp_path: Path, tracking: str
) -> None:
    write_tar(tmp_path / "photos.tar", PHOTOS)
    shards = str(tmp_path / "photos.tar")
    run.predict(shards, model_uri=model, output=str(tmp_path / "out"))
    table = pq.read_table(tmp_path / "out" / "part-000000.parquet")
    crop = {"image": tarpon.CenterCrop(colours.SIZE, layout="NCHW", dtype="float32")}
    with tarpon.Loader(shards, batch_size=len(PHOTOS), fields=crop, shuffle=False) as loader:
        (batch,) = list(loader)
        body = json.dumps({"inputs": batch["image"].tolist()}).encode()
    port = free_port()
    words = ["mlflow", "models", "serve", "--model-uri", model, "--env-manager", "local"]
    with process([*words, "--port", str(port)], tmp_path, port, "/ping"):
        url = f"http://127.0.0.1:{port}/invocations"
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            logits = np.array(json.load(answer)["predictions"])
    scores = np.exp(logits - logits.max(1, keepdims=True))
    scores /= scores.sum(1, keepdims=True)
    assert np.abs(scores - np.array(table["probabilities"].to_pylist())).max() < 1e-4
