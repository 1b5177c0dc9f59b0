"""`python -m components.split --catalog URL --root ROOT --name NAME`: the split step by hand."""

from __future__ import annotations

import argparse
import sys

from components.rules import NEAR_DUPLICATE_BITS, STRATEGIES
from components.split import run
from components.store import StoreError


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m components.split", description=run.__doc__)
    parser.add_argument("--catalog", required=True, help="URL of the catalog that ingest wrote")
    parser.add_argument("--root", required=True, help="store root, a local folder")
    parser.add_argument("--name", required=True, help="the dataset's name")
    parser.add_argument("--strategy", default="stratified", choices=STRATEGIES)
    parser.add_argument("--by", help="group column, with --strategy group")
    parser.add_argument(
        "--fractions", default="0.8,0.1,0.1", help="shares of train, val and test (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--near-duplicate-bits", type=int, default=NEAR_DUPLICATE_BITS)
    parser.add_argument("--report", help="also write the report to this file")
    options = parser.parse_args(argv)
    try:
        report = run.split(
            options.catalog,
            root=options.root,
            name=options.name,
            strategy=options.strategy,
            by=options.by,
            fractions=[float(share) for share in options.fractions.split(",")],
            seed=options.seed,
            near_duplicate_bits=options.near_duplicate_bits,
        )
    except (ValueError, StoreError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    if options.report:
        report.write(options.report)
    sys.stdout.write(report.to_json() + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
