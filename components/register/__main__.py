"""`python -m components.register --evaluation FILE`: the register step by hand."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import Any

from components.manifest import ManifestError
from components.register import run
from components.store import StoreError
from components.tracking import TrackingError


def main(arguments: list[str] | None = None) -> int:
    """The command; prints the report as JSON and returns its exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr, force=True)
    options = _parser().parse_args(arguments)
    try:
        report = run.register(
            **_measured(options.evaluation),
            name=options.name,
            min_accuracy=options.min_accuracy,
            margin=options.margin,
        )
    except KeyboardInterrupt:
        print("register: interrupted", file=sys.stderr)
        return 130
    except (ManifestError, run.NotEvaluatedError, StoreError, TrackingError) as error:
        print(f"register: {error}", file=sys.stderr)
        return 1
    print(report.to_json())
    return 0


def _measured(path: Path) -> dict[str, Any]:
    try:
        return run.measured(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise run.NotEvaluatedError(
            f"{path}: no report of evaluate ({type(error).__name__}: {error}), expected the "
            "report.json of its --output; run evaluate first"
        ) from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m components.register", description=run.__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--evaluation",
        type=Path,
        required=True,
        metavar="FILE",
        help="report.json that evaluate wrote; run that with --champion-of NAME",
    )
    parser.add_argument("--name", help="the registered model (default: the dataset's name)")
    parser.add_argument(
        "--min-accuracy", type=float, default=0.0, help="no alias below it (%(default)s)"
    )
    parser.add_argument(
        "--margin", type=float, default=0.0, help="over the champion's accuracy (%(default)s)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
