"""A logged model that answers requests with images: in Lambda, in KServe, or on its own.

    python -m components.predict.handler --model models:/flowers@champion --port 8080

It decodes what it is sent as the loader would (JPEG, PNG, ... bytes; see `images`) and scores it
with the code of the batch job, so that both give the same scores. `Handler.respond` is the whole
protocol, a function of one request; `lambda_handler` and `server` only carry requests to it.

    POST /v1/models/<name>:predict      {"instances": [{"b64": "..."}, ...]}, or one image's bytes
    POST /v2/models/<name>/infer        {"inputs": [{"name": "image", "datatype": "BYTES", ...}]}
    GET  /v1/models/<name>   /v2/models/<name>   /v2/models/<name>/ready
    GET  /v2/health/live     /v2/health/ready
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import json
import logging
import os
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from components import logged_model
from components.predict import images
from components.predict.scorer import Scorer

_log = logging.getLogger(__name__)

MAX_IMAGES = 64
"""Images of one request; a batch job is for more."""


class RequestError(ValueError):
    """A request that cannot be answered; `status` is HTTP's."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclasses.dataclass(frozen=True, slots=True)
class Reply:
    """An answer: HTTP's status and a JSON object."""

    status: int
    body: dict[str, Any]

    def to_bytes(self) -> bytes:
        return json.dumps(self.body).encode()


class Handler:
    """One model in memory. `load` once; after that any number of threads may ask.

    Args:
        model_uri: See `logged_model.load`; what an alias names is fixed when it is loaded.
        name: What the model is called in paths; default: its registered name, else `model`.
        device, threads: See `Scorer`.
        max_images, max_pixels: Of one request, of one image.
    """

    def __init__(
        self,
        model_uri: str,
        *,
        name: str | None = None,
        device: str = "auto",
        threads: int | None = None,
        max_images: int = MAX_IMAGES,
        max_pixels: int = images.MAX_PIXELS,
    ) -> None:
        self._model_uri, self._name = model_uri, name
        self._device, self._threads = device, threads
        self._max_images, self._max_pixels = max_images, max_pixels
        self._scorer: Scorer | None = None
        self._loading = threading.Lock()

    def load(self) -> None:
        """Bring the model into memory; a second time does nothing.

        Raises:
            TrackingError, ModelMismatchError, DeviceError: It cannot be served.
        """
        with self._loading:
            if self._scorer is None:
                model = logged_model.load(self._model_uri)
                self._scorer = Scorer(model, device=self._device, threads=self._threads)
                side = model.image_size
                self._scorer(np.zeros((1, side, side, 3), np.uint8))  # the first call is slow
                _log.info("%s is loaded: %d classes", model.uri, len(model.classes))

    @property
    def name(self) -> str:
        return self._name or self._loaded.model.name or "model"

    def predict(self, pictures: Sequence[bytes | str]) -> list[dict[str, Any]]:
        """For each picture its `predicted` class, the `probability`, and all `probabilities`.

        Args:
            pictures: Bytes of JPEG, PNG, ... files, or base64 of them.

        Raises:
            RequestError: Too many, or one is not an image: says which.
        """
        classes = self._loaded.model.classes
        return [
            {
                "predicted": classes[int(row.argmax())],
                "probability": float(row.max()),
                "probabilities": dict(zip(classes, row.tolist(), strict=True)),
            }
            for row in self.scores(pictures)
        ]

    def scores(self, pictures: Sequence[bytes | str]) -> npt.NDArray[np.float32]:
        """`float32[B, classes]`; arguments and errors as for `predict`."""
        if not pictures:
            raise RequestError(400, "found no images, expected at least one")
        if len(pictures) > self._max_images:
            raise RequestError(
                413,
                f"found {len(pictures)} images, expected {self._max_images} at most; send them in "
                "several requests, or run python -m components.predict over shards",
            )
        size = self._loaded.model.image_size
        batch = np.empty((len(pictures), size, size, 3), np.uint8)
        for number, picture in enumerate(pictures):
            try:
                data = _from_base64(picture) if isinstance(picture, str) else picture
                batch[number] = images.pixels(data, size, max_pixels=self._max_pixels)
            except images.BadImageError as error:
                raise RequestError(400, f"image {number}: {error}") from error
        return self._loaded(batch)

    def respond(self, method: str, path: str, content_type: str, body: bytes) -> Reply:
        """Answer one HTTP request; whatever is wrong with it is an answer too."""
        try:
            return Reply(200, self._answer(method, path.rstrip("/"), content_type, body))
        except RequestError as error:
            return Reply(error.status, {"error": str(error)})

    # ---- inside ----------------------------------------------------------------------------------

    @property
    def _loaded(self) -> Scorer:
        if self._scorer is None:
            raise RequestError(503, "the model is not loaded yet, expected load() before; wait")
        return self._scorer

    def _answer(self, method: str, path: str, content_type: str, body: bytes) -> dict[str, Any]:
        if path in ("", "/v2/health/live"):
            return _only(method, "GET", {"live": True})
        if path == "/v2/health/ready":
            return _only(method, "GET", {"ready": self._loaded is not None})
        name = self.name
        if path in (f"/v1/models/{name}", f"/v2/models/{name}/ready"):
            return _only(method, "GET", {"name": name, "ready": True})
        if path == f"/v2/models/{name}":
            return _only(method, "GET", self._metadata())
        if path == f"/v1/models/{name}:predict":
            _only(method, "POST", {})
            kind = content_type.partition(";")[0].strip().lower()
            if kind.startswith("image/") or kind == "application/octet-stream":
                return {"predictions": self.predict([body])}
            return {"predictions": self.predict(_instances(_object(body, kind, _OR_IMAGE)))}
        if path == f"/v2/models/{name}/infer":
            _only(method, "POST", {})
            return self._infer(_object(body, content_type))
        raise RequestError(
            404,
            f"nothing at this path, expected /v1/models/{name}:predict, /v2/models/{name}/infer "
            "or /v2/health/ready",
        )

    def _infer(self, asked: dict[str, Any]) -> dict[str, Any]:
        """KServe's second protocol: tensors as flat lists."""
        scores = self.scores(_tensor(asked))
        model = self._loaded.model
        predicted = [model.classes[best] for best in scores.argmax(1).tolist()]
        shape = list(scores.shape)
        answer = {
            "model_name": self.name,
            "model_version": model.version or model.uri,
            "outputs": [
                {"name": "predicted", "datatype": "BYTES", "shape": shape[:1], "data": predicted},
                {
                    "name": "probabilities",
                    "datatype": "FP32",
                    "shape": shape,
                    "data": scores.reshape(-1).tolist(),
                },
            ],
        }
        return answer | ({"id": asked["id"]} if isinstance(asked.get("id"), str) else {})

    def _metadata(self) -> dict[str, Any]:
        model = self._loaded.model
        return {
            "name": self.name,
            "versions": [model.version or model.uri],
            "platform": "tarpon",
            "inputs": [{"name": "image", "datatype": "BYTES", "shape": [-1]}],
            "outputs": [
                {"name": "predicted", "datatype": "BYTES", "shape": [-1]},
                {"name": "probabilities", "datatype": "FP32", "shape": [-1, len(model.classes)]},
            ],
            "parameters": {
                "model_uri": model.uri,
                "model_digest": model.digest,
                "image_size": model.image_size,
                "classes": model.classes,
            },
        }


def _only(method: str, expected: str, answer: dict[str, Any]) -> dict[str, Any]:
    if method != expected and (method, expected) != ("HEAD", "GET"):
        raise RequestError(405, f"found {method}, expected {expected}")
    return answer


_OR_IMAGE = ", or one image's bytes as Content-Type image/... or application/octet-stream"


def _object(body: bytes, content_type: str, otherwise: str = "") -> dict[str, Any]:
    """The JSON object of a request; `otherwise` names what else it may send."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        kind = content_type[:100] or "no Content-Type"
        raise RequestError(
            400,
            f"found {len(body)} bytes of {kind} that are not JSON ({error}), expected a JSON "
            f"object{otherwise}",
        ) from error
    if not isinstance(found, dict):
        raise RequestError(400, f"found a JSON {type(found).__name__}, expected an object")
    return found


def _instances(asked: Mapping[str, Any]) -> list[str]:
    """The base64 of each image in the first protocol's form."""
    form = '{"instances": [{"b64": "..."}, ...]}'
    found = asked.get("instances")
    if not isinstance(found, list):
        raise RequestError(400, f"found the keys {_names(asked)}, expected {form}")
    texts = []
    for number, item in enumerate(found):
        text = item.get("b64") if isinstance(item, dict) else item
        if not isinstance(text, str):
            raise RequestError(400, f"image {number}: found no base64 text, expected {form}")
        texts.append(text)
    return texts


def _tensor(asked: Mapping[str, Any]) -> list[str]:
    """The base64 of each image in the second protocol's form."""
    form = '{"inputs": [{"name": "image", "shape": [n], "datatype": "BYTES", "data": ["...", ]}]}'
    inputs = asked.get("inputs")
    one = inputs[0] if isinstance(inputs, list) and len(inputs) == 1 else None
    data = one.get("data") if isinstance(one, dict) and one.get("datatype") == "BYTES" else None
    if not isinstance(one, dict) or not isinstance(data, list):
        raise RequestError(400, f"found the keys {_names(asked)}, expected {form}")
    if one.get("shape") not in ([len(data)], [len(data), 1]):
        raise RequestError(400, f"found {len(data)} images, which `shape` does not say: {form}")
    if not all(isinstance(text, str) for text in data):
        raise RequestError(400, f"found data that is not base64 text, expected {form}")
    return data


def _names(asked: Mapping[str, Any]) -> str:
    return str(sorted(asked)[:8])[:200]


def _from_base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise images.BadImageError(
            f"found {len(text)} characters that are not base64: {error}"
        ) from error


# ---- AWS Lambda ----------------------------------------------------------------------------------

_shared: Handler | None = None
_making = threading.Lock()


def lambda_handler(event: dict[str, Any], context: object) -> dict[str, Any]:
    """Lambda's entry: an API Gateway or function URL event, or a first-protocol object directly.

    The model is `TARPON_MODEL`, loaded once per container and kept; `TARPON_MODEL_NAME` is its
    name in paths. Lambda itself limits how many requests a container has: one.

    Raises:
        RequestError: The object of a direct call cannot be answered; HTTP events get a status.
    """
    handler = _shared_handler()
    if "requestContext" not in event and "httpMethod" not in event:
        return {"predictions": handler.predict(_instances(event))}
    http = event.get("requestContext", {}).get("http", {})
    method = event.get("httpMethod") or http.get("method", "GET")
    headers = {key.lower(): value for key, value in (event.get("headers") or {}).items()}
    text = event.get("body") or ""
    try:
        body = base64.b64decode(text) if event.get("isBase64Encoded") else text.encode()
    except (binascii.Error, ValueError):
        body = b""  # the gateway's own encoding: what follows says that nothing came
    path = event.get("path") or event.get("rawPath") or "/"
    reply = handler.respond(method, path, headers.get("content-type", ""), body)
    return {
        "statusCode": reply.status,
        "headers": {"content-type": "application/json"},
        "body": reply.to_bytes().decode(),
        "isBase64Encoded": False,
    }


def _shared_handler() -> Handler:
    global _shared
    with _making:
        if _shared is None:
            uri = os.environ.get("TARPON_MODEL")
            if not uri:
                raise RequestError(
                    500, "TARPON_MODEL: not set, expected the model's URI; set it on the function"
                )
            handler = Handler(uri, name=os.environ.get("TARPON_MODEL_NAME"), device="cpu")
            handler.load()
            _shared = handler
    return _shared


if __name__ == "__main__":
    import sys

    from components.predict import server

    sys.exit(server.main())
