"""Ask a running handler what is in some photographs.

    python -m components.predict.handler --model models:/flowers@champion &
    python examples/ask_handler.py http://localhost:8080 flowers rose.jpg tulip.jpg

Needs nothing but Python. A server that is busy says 503 and when to come again; this waits.
"""

from __future__ import annotations

import argparse
import base64
import json
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

TRIES = 5


def ask(url: str, pictures: list[bytes]) -> list[dict[str, Any]]:
    """The handler's prediction for each picture; raises `urllib.error.HTTPError` on refusal."""
    instances = [{"b64": base64.b64encode(picture).decode()} for picture in pictures]
    body = json.dumps({"instances": instances}).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    for left in reversed(range(TRIES)):
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                found: list[dict[str, Any]] = json.load(answer)["predictions"]
                return found
        except urllib.error.HTTPError as error:
            if error.code != 503 or not left:
                raise
            time.sleep(float(error.headers.get("Retry-After", 1)))
    raise AssertionError("the last try returns or raises")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("server", help="http://host:port")
    parser.add_argument("model", help="the model's name in paths")
    parser.add_argument("photo", nargs="+", type=Path)
    options = parser.parse_args()
    url = f"{options.server.rstrip('/')}/v1/models/{options.model}:predict"
    try:
        answers = ask(url, [path.read_bytes() for path in options.photo])
    except urllib.error.HTTPError as error:
        print(f"{url}: {error.code}: {json.load(error)['error']}", file=sys.stderr)
        return 1
    for path, answer in zip(options.photo, answers, strict=True):
        print(f"{path}: {answer['predicted']} ({answer['probability']:.1%})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
