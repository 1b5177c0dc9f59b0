"""`python -m components.ingest SOURCE --root R --name N`: the ingest step by hand."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from components.catalog import CatalogError
from components.ingest import run
from components.ingest.files import IngestError
from components.rules import MAX_PIXELS
from components.store import StoreError


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; prints the report as JSON and returns its exit status."""
    parser = argparse.ArgumentParser(prog="components.ingest", description=run.__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "source", help="folder or s3:// prefix with a subfolder per class, or a manifest"
    )
    parser.add_argument("--root", default="tarpon-data", help="store root (default tarpon-data)")
    parser.add_argument("--name", default="photos", help="dataset name (default photos)")
    parser.add_argument("--workers", type=int, help="threads (default: one per usable CPU)")
    parser.add_argument("--max-pixels", type=int, default=MAX_PIXELS, metavar="N")
    parser.add_argument(
        "--group",
        metavar="REGEX",
        help="its first (..), searched in each path below SOURCE, is the sample's group",
    )
    options = parser.parse_args(arguments)
    try:
        report = run.ingest(
            options.source,
            root=options.root,
            name=options.name,
            workers=options.workers,
            max_pixels=options.max_pixels,
            group=options.group,
        )
    except (IngestError, CatalogError, StoreError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    print(report.to_json())
    return 0


if __name__ == "__main__":
    sys.exit(main())
