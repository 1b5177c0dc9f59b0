"""`python -m components.shard --catalog URL --root ROOT --name NAME`: the shard step by hand.

With `--verify DATASET_URL` alone it reads an existing version back and renews its proof.
"""

from __future__ import annotations

import argparse
import sys

from components import manifest
from components.report import Report
from components.rules import NEAR_DUPLICATE_BITS
from components.shard import run
from components.store import StoreError


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m components.shard",
        description=run.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--catalog", help="URL of the catalog that split wrote")
    what.add_argument("--verify", metavar="DATASET_URL", help="only read this version back")
    parser.add_argument("--root", help="store root: a folder or s3://bucket/prefix")
    parser.add_argument("--name", help="the dataset's name")
    parser.add_argument("--version", help="the version's name (default: derived from content)")
    parser.add_argument("--max-bytes", type=int, default=64 * 2**20, help="largest tar, bytes")
    parser.add_argument(
        "--near-duplicate-bits",
        type=int,
        help=f"default: what a published version was checked with, else {NEAR_DUPLICATE_BITS}",
    )
    parser.add_argument("--report", help="also write the report to this file")
    options = parser.parse_args(argv)
    if options.catalog and not (options.root and options.name):
        parser.error("--catalog needs --root and --name")
    try:
        report = _run(options)
    except (ValueError, StoreError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    if options.report:
        report.write(options.report)
    sys.stdout.write(report.to_json() + "\n")
    return 0 if not isinstance(report, run.VerifyReport) or report.ok else 1


def _run(options: argparse.Namespace) -> Report:
    bits = options.near_duplicate_bits
    if options.verify:
        return run.verify(options.verify, near_duplicate_bits=_bits(options.verify, bits))
    return run.shard(
        options.catalog,
        root=options.root,
        name=options.name,
        version=options.version,
        max_bytes=options.max_bytes,
        near_duplicate_bits=NEAR_DUPLICATE_BITS if bits is None else bits,
    )


def _bits(dataset_url: str, asked: int | None) -> int | None:
    """The threshold to verify with; refuses one that proves less than the version promises."""
    promised = run.published_bits(dataset_url)
    if asked is None:
        published = manifest.readable(dataset_url) is not None
        return promised if published else NEAR_DUPLICATE_BITS
    if asked < run.strength(promised):
        raise run.ShardError(
            f"--near-duplicate-bits {asked}: {dataset_url} was published on a proof with "
            f"{promised}, expected at least that; leave the option away"
        )
    return asked


if __name__ == "__main__":
    sys.exit(main())
