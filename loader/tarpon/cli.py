"""The `tarpon` command: look into shards, index them, check them. Never changes a tar."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import tarpon
from tarpon import _cli_try
from tarpon._cli_try import Run
from tarpon._index import (
    check_list,
    counted,
    refuse_remote,
    sidecar,
    write_list,
    write_sidecar,
)
from tarpon._names import Shard
from tarpon._shards import resolve
from tarpon._verify import check_shard
from tarpon.dataset import Dataset

_SHARDS_HELP = (
    "a tar, a shard list (train.json), a folder, a glob or 'train-{000..127}.tar'; local, s3:// or "
    "https://"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0 fine, 1 faults found, 2 an error."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except BrokenPipeError:  # `tarpon ls ... | head`
        sys.stderr.close()
        return 0
    except (tarpon.TarponError, ValueError, LookupError, OSError) as error:
        message = str(error) if isinstance(error, OSError) or not error.args else error.args[0]
        print(f"tarpon: {message}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tarpon", description=__doc__)
    parser.add_argument("--version", action="version", version=f"tarpon {tarpon.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, run: Run, summary: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=summary, description=summary)
        many = "+" if name != "cat" else None
        command.add_argument("shards", nargs=many, help=_SHARDS_HELP)
        command.add_argument("--json", action="store_true", help="one JSON document per line")
        command.set_defaults(run=run)
        return command

    ls = add("ls", _ls, "List samples: number, shard, key, components with sizes in bytes.")
    ls.add_argument("--limit", type=_count, metavar="N", help="list only the first N samples")
    cat = add("cat", _cat, "Write one component of one sample to standard output.")
    cat.add_argument("sample", help="the sample's number, or its key")
    cat.add_argument("ext", nargs="?", help="component; without it, list what the sample has")
    index = add("index", _index, "Write DALI's .idx beside each tar that has none, and a list.")
    index.add_argument("--force", action="store_true", help="replace the indexes that are there")
    index.add_argument(
        "--list",
        metavar="FILE",
        help="write a shard list such as train.json too; of remote tars nothing else is written",
    )
    verify = add("verify", _verify, "Read every shard back and compare tar, index and shard list.")
    verify.add_argument("--decode", action="store_true", help="also decode every image")
    _cli_try.add_commands(add)
    return parser


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}, expected a number of samples")
    return int(text)


def _ls(options: argparse.Namespace) -> int:
    dataset = Dataset(options.shards)
    count = len(dataset) if options.limit is None else min(options.limit, len(dataset))
    for number in range(count):
        path, key, members = dataset.find(number)
        if options.json:
            components = {ext: {"offset": at, "bytes": size} for ext, at, size in members}
            _emit({"sample": number, "shard": path, "key": key, "components": components})
        else:
            sizes = "  ".join(f"{ext} {size} B" for ext, _, size in members)
            print(f"{number:>8}  {Path(path).name}  {key}  {sizes}")
    if not options.json:
        print(f"{len(dataset)} samples in {len(dataset.shards)} shards", file=sys.stderr)
    return 0


def _cat(options: argparse.Namespace) -> int:
    dataset = Dataset(options.shards)
    number = _find(dataset, options.sample)
    sample = dataset[number]
    if options.ext is None:
        path, key, members = dataset.find(number)
        if options.json:
            components = {ext: {"offset": at, "bytes": size} for ext, at, size in members}
            _emit({"sample": number, "shard": path, "key": key, "components": components})
            return 0
        print(f"{path}, sample {number}, key {key}")
        for ext, offset, size in members:
            print(f"  {ext:<8} {size:>10} bytes at {offset}")
        return 0
    name = options.ext.lower().removeprefix(".")
    if name not in sample:
        raise LookupError(
            f"sample {options.sample}: no component {name!r}, it has {', '.join(sample)}"
        )
    sys.stdout.buffer.write(sample[name])
    sys.stdout.buffer.flush()
    return 0


def _find(dataset: Dataset, text: str) -> int:
    for number in range(len(dataset)):
        if dataset.key(number) == text:
            return number
    if text.isdigit() and int(text) < len(dataset):
        return int(text)
    raise LookupError(f"no sample {text!r}, expected a key or a number below {len(dataset)}")


def _index(options: argparse.Namespace) -> int:
    shards = resolve(options.shards)
    if options.list:
        check_list(options.list, shards)
    for shard in shards:
        if not options.list:
            refuse_remote(shard)
    local = [shard for shard in shards if not shard.is_remote]
    for shard in _progress(local, len(local), "indexing"):
        path = sidecar(shard.path)
        wanted = options.force or not path.exists()
        if wanted:
            write_sidecar(shard.path)
        if options.json:
            _emit({"shard": shard.path, "index": str(path), "written": wanted})
        else:
            print(f"{path}: {'written' if wanted else 'already there, --force replaces it'}")
    if options.list:
        _write_list(options.list, shards, as_json=options.json)
    return 0


def _write_list(path: str, shards: list[Shard], *, as_json: bool) -> None:
    listed = list(_progress(counted(shards), len(shards), "counting"))
    write_list(path, listed)
    report = {
        "list": path,
        "shards": len(listed),
        "samples": sum(shard.samples for shard in listed),
        "bytes": sum(shard.bytes for shard in listed),
    }
    if as_json:
        _emit(report)
    else:
        print(f"{path}: written, {report['samples']} samples in {len(listed)} shards")


def _verify(options: argparse.Namespace) -> int:
    shards = resolve(options.shards)
    bad = samples = 0
    for shard in _progress(shards, len(shards), "verifying"):
        count, faults = check_shard(shard, decode=options.decode, progress=_reading)
        samples += count
        bad += bool(faults)
        if options.json:
            _emit({"shard": shard.path, "samples": count, "faults": faults})
        else:
            print(f"{shard.path}: {f'ok, {count} samples' if not faults else 'BAD'}")
            for fault in faults:
                print(f"  {fault}")
    if not options.json:
        print(f"{samples} samples in {len(shards)} shards, {bad} shards bad", file=sys.stderr)
    return 1 if bad else 0


def _emit(document: dict[str, Any]) -> None:
    print(json.dumps(document, sort_keys=True))


def _progress(shards: Iterable[Shard], total: int, label: str) -> Iterator[Shard]:
    """A bar on a terminal, nothing elsewhere."""
    shown = sys.stderr.isatty() and total > 1
    for number, shard in enumerate(shards):
        if shown:
            _cli_try.bar(label, number, total, f"{number}/{total}")
        yield shard
        if shown:
            _cli_try.no_bar()


def _reading(name: str, done: int, total: int) -> None:
    """How far a remote shard was read, on a terminal."""
    if sys.stderr.isatty():
        _cli_try.bar(name, done, total, f"{done >> 20} of {total >> 20} MiB")


if __name__ == "__main__":
    sys.exit(main())
