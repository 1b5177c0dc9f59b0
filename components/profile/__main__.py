"""`python -m components.profile --catalog URL --output FILE`: the profile step by hand."""

from __future__ import annotations

import argparse
import sys

from components.catalog import CatalogError
from components.profile import run
from components.rules import NEAR_DUPLICATE_BITS
from components.store import StoreError


def main(arguments: list[str] | None = None) -> int:
    """The command; prints the report as JSON and returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m components.profile", description=run.__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--catalog", required=True, metavar="URL", help="what ingest or split wrote"
    )
    parser.add_argument("--output", default="profile.html", metavar="FILE", help="%(default)s")
    parser.add_argument("--near-duplicate-bits", type=int, default=NEAR_DUPLICATE_BITS, metavar="N")
    options = parser.parse_args(arguments)
    try:
        report = run.profile(
            options.catalog,
            output=options.output,
            near_duplicate_bits=options.near_duplicate_bits,
        )
    except (CatalogError, StoreError, ValueError) as error:
        print(f"profile: {error}", file=sys.stderr)
        return 1
    print(report.to_json())
    return 0


if __name__ == "__main__":
    sys.exit(main())
