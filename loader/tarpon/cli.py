"""The `tarpon` command: look into shards, index them, check them. Never changes a tar."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import tarpon
from tarpon import _cli_try, _core, _pillow
from tarpon._cli_try import Run
from tarpon._names import Shard
from tarpon._shards import resolve
from tarpon.dataset import Dataset, refuse_remote, sidecar, write_sidecar
from tarpon.fields import IMAGE_EXTENSIONS

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
    index = add("index", _index, "Write DALI's .idx beside each tar that has none.")
    index.add_argument("--force", action="store_true", help="replace the indexes that are there")
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
    for shard in shards:
        refuse_remote(shard)
    for shard in _progress(shards, "indexing"):
        path = sidecar(shard.path)
        wanted = options.force or not path.exists()
        if wanted:
            write_sidecar(shard.path)
        if options.json:
            _emit({"shard": shard.path, "index": str(path), "written": wanted})
        else:
            print(f"{path}: {'written' if wanted else 'already there, --force replaces it'}")
    return 0


def _verify(options: argparse.Namespace) -> int:
    shards = resolve(options.shards)
    bad = samples = 0
    for shard in shards:
        if shard.is_remote:
            raise tarpon.StoreError(
                f"{shard.path}: a remote tar, expected a local one to read back; verify it where "
                "it is written, or copy it here; a Loader checks what it reads of it"
            )
    for shard in _progress(shards, "verifying"):
        count, faults = _check_shard(shard, decode=options.decode)
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


def _check_shard(shard: Shard, *, decode: bool) -> tuple[int, list[str]]:
    """(samples, faults) of one tar; the faults are sentences."""
    faults = _wrong_size(shard)
    if faults:  # nothing that is said about its inside would help
        return 0, faults
    keys: set[str] = set()
    try:
        dataset = Dataset(shard.path)  # reads the index, or scans the tar
        for number in range(len(dataset)):
            sample = dataset[number]  # every header must agree with the index
            key = dataset.key(number)
            if key in keys:
                faults.append(
                    f"sample {key}: members at two places, expected them side by side; pack the "
                    "shard again in the order of the names, for instance with `tar --sort=name`"
                )
            keys.add(key)
            if decode:
                faults += _undecodable(dataset.key(number), sample)
        faults += _stale_index(shard.path)
    except (tarpon.TarponError, ValueError) as error:
        return 0, [*faults, str(error)]
    if shard.samples >= 0 and shard.samples != len(dataset):
        faults.append(f"{len(dataset)} samples, expected {shard.samples} by the shard list")
    for algorithm, expected in (("md5", shard.md5sum), ("sha256", shard.sha256)):
        found = _digest(shard.path, algorithm) if expected else expected
        if found != expected:
            faults.append(f"{algorithm} {found}, expected {expected} by the shard list")
    return len(dataset), faults


def _wrong_size(shard: Shard) -> list[str]:
    try:
        size = Path(shard.path).stat().st_size
    except OSError as error:
        return [f"{error.strerror or error}, expected a tar"]
    if shard.bytes in (-1, size):
        return []
    return [f"{size} bytes, expected {shard.bytes} by the shard list; it was cut off or replaced"]


def _stale_index(path: str) -> list[str]:
    """An index may agree with every header it names and still leave samples out."""
    index = sidecar(path)
    if not index.exists():
        return []
    found, expected = _members(index.read_bytes()), _members(_core.index_text(path))
    if found == expected:
        return []
    return [
        f"{index}: {len(found)} samples, the tar has {len(expected)}, not the same; "
        "rebuild it with `tarpon index --force`"
    ]


def _members(text: bytes) -> list[frozenset[tuple[bytes, ...]]]:
    """The lines of an index without the header, each as a set of (offset, size)."""
    rows = [line.split() for line in text.splitlines()[1:]]
    width = 3 if text.startswith(b"v1.1") else 4
    return [
        frozenset((row[at + 1], row[at + 2]) for at in range(0, len(row) - 2, width))
        for row in rows
        if row
    ]


def _undecodable(key: str, sample: dict[str, bytes]) -> Iterator[str]:
    for extension in set(sample) & set(IMAGE_EXTENSIONS.split(";")):
        try:
            _pillow.decode(sample[extension])
        except _pillow.UndecodableError as error:
            yield f"sample {key}, component {extension}: {error}"


def _digest(path: str, algorithm: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def _emit(document: dict[str, Any]) -> None:
    print(json.dumps(document, sort_keys=True))


def _progress(shards: list[Shard], label: str) -> Iterator[Shard]:
    """A bar on a terminal, nothing elsewhere."""
    shown = sys.stderr.isatty() and len(shards) > 1
    for number, shard in enumerate(shards):
        if shown:
            filled = 30 * number // len(shards)
            bar = "#" * filled + "." * (30 - filled)
            print(f"\r{label} [{bar}] {number}/{len(shards)}", end="", file=sys.stderr)
        yield shard
        if shown:
            print("\r\x1b[K", end="", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
