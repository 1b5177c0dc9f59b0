"""The commands that try something on one's own shards: an order, a loader, a crop. See cli.py."""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as Pillow

from tarpon import _stats
from tarpon._order import Order
from tarpon._prefetch import prefetch
from tarpon.dataset import Dataset
from tarpon.errors import StoreError
from tarpon.fields import IMAGE_EXTENSIONS, CenterCrop, Field, RandomResizedCrop, Raw
from tarpon.loader import Loader

Run = Callable[[argparse.Namespace], int]
_MIB = 2**20


def add_commands(add: Callable[[str, Run, str], argparse.ArgumentParser]) -> None:
    """Add stats, bench and view by `add`, which makes a command that takes shards."""
    stats = add("stats", _show_stats, "Count what shards hold; with --shuffle, judge an order.")
    stats.add_argument("--shuffle", action="store_true", help="how well an epoch's order mixes")
    stats.add_argument("--label", metavar="EXT", help="component with the class; default cls")
    stats.add_argument("--batches", type=_positive, default=16, help="to look at, default 16")
    stats.add_argument(
        "--rate", type=_seconds, metavar="N", help="samples/s of all ranks; default 2500 each"
    )
    stats.add_argument(
        "--price", type=_price, default=0.0004, metavar="USD", help="of 1,000 GETs, default 0.0004"
    )
    _add_order(stats)
    bench = add("bench", _bench, "Time a Loader over shards and say what it waited for.")
    bench.add_argument("--crop", type=_positive, metavar="PX", help="decode, crop and resize to PX")
    bench.add_argument("--threads", type=_positive, help="default one per CPU, at most 16")
    bench.add_argument("--seconds", type=_seconds, default=5.0, help="about how long, default 5")
    bench.add_argument("--no-shuffle", action="store_true", help="samples as they lie")
    _add_order(bench)
    view = add("view", _view, "Draw what a model would be fed as one picture.")
    view.add_argument("--output", type=Path, default=Path("batch.png"), help="default batch.png")
    view.add_argument("--crop", type=_positive, default=160, metavar="PX", help="default 160")
    view.add_argument("--center", action="store_true", help="the evaluation crop, not random ones")
    view.add_argument("--count", type=_positive, default=48, help="images, default 48")
    view.add_argument("--seed", type=int, default=0)
    fetch = add("prefetch", _prefetch_all, "Fill a cache with remote shards before a run.")
    fetch.add_argument("--cache-dir", type=Path, required=True, help="the loader's cache_dir")
    fetch.add_argument("--cache-bytes", type=_bytes, metavar="N", help="at most, such as 500G")


def _add_order(command: argparse.ArgumentParser) -> None:
    command.add_argument("--batch-size", type=_positive, default=256, help="per rank, default 256")
    command.add_argument("--world-size", type=_positive, default=1, help="ranks, default 1")
    command.add_argument("--lanes", type=_positive, help="as in tarpon.Loader")
    command.add_argument("--window", type=_window, metavar="N|all", help="its window_samples")
    command.add_argument("--seed", type=int, default=0)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}, expected a whole number of at least 1")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}, expected seconds above 0")
    return seconds


def _price(text: str) -> float:
    return 0.0 if text == "0" else _seconds(text)


def _bytes(text: str) -> int:
    """``2000``, ``64M``, ``1.5T``: decimal powers, or with an i binary ones."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kKMGT]?)(i?)B?", text)
    if not found or not float(found[1]):
        raise argparse.ArgumentTypeError(f"{text!r}, expected bytes such as 500G or 1.5TiB")
    power = "kMGT".find(found[2].lower() if found[2] == "K" else found[2]) + 1 if found[2] else 0
    return int(float(found[1]) * (1024 if found[3] else 1000) ** power)


def _window(text: str) -> int | str:
    return text if text == "all" else _positive(text)


# ---- stats -----------------------------------------------------------------------------------


def _show_stats(options: argparse.Namespace) -> int:
    dataset = Dataset(options.shards)
    report: dict[str, Any] = _stats.contents(dataset, samples=2000)
    if options.shuffle and len(dataset) > 0:
        report["shuffle"] = _shuffle_report(dataset, options)
    if options.json:
        print(json.dumps(_no_nan(report), sort_keys=True))
        return 0
    print(
        f"{report['samples']:,} samples in {report['shards']:,} shards, "
        f"{report['bytes'] / _MIB:,.1f} MiB"
    )
    for extension, found in report["components"].items():
        print(
            f"  {extension:<10} in {found['share']:7.1%} of the samples, bytes "
            f"{found['bytes_min']:,} to {found['bytes_max']:,}, mean {found['bytes_mean']:,.0f}"
        )
    if report["looked_at"] < report["samples"]:
        print(f"  of {report['looked_at']:,} samples, evenly spread")
    if "shuffle" in report:
        _print_shuffle(report["shuffle"])
    return 0


def _shuffle_report(dataset: Dataset, options: argparse.Namespace) -> dict[str, Any]:
    batch = options.batch_size * options.world_size
    order = Order.of(
        samples=len(dataset),
        total_bytes=dataset.total_bytes,
        global_batch=batch,
        shuffle=True,
        seed=options.seed,
        lanes=options.lanes,
        window_samples=options.window,
    )
    label = options.label or ("cls" if dataset.component(0, "cls") is not None else None)
    mixes = _stats.mixes(dataset, order, global_batch=batch, batches=options.batches, label=label)
    plan = _stats.plan(
        dataset,
        order,
        batch_size=options.batch_size,
        world_size=options.world_size,
        samples_per_s=options.rate or 2500.0 * options.world_size,
        dollars_per_1000=options.price,
    )
    return {
        "order": order.state(),
        "batch_size": options.batch_size,
        "world_size": options.world_size,
        "label": label,
        "batches": options.batches,
        "mixes": {name: asdict(mix) for name, mix in mixes.items()},
        "epoch": plan,
    }


def _print_shuffle(report: dict[str, Any]) -> None:
    order, epoch = report["order"], report["epoch"]
    print(
        f"\norder: {order['lanes']} lanes, windows of {order['window']:,} samples, chunks of "
        f"{order['chunk']}; global batch {report['batch_size'] * report['world_size']:,}"
    )
    print(f"{'':14}{'pairs of one chunk':>20}{'classes in a batch':>20}{'chi2 / df':>12}")
    for name, mix in report["mixes"].items():
        print(
            f"  {name:<12}{mix['same_chunk']:>20.4%}{_number(mix['classes']):>20}"
            f"{_number(mix['imbalance']):>12}"
        )
    print(
        "  pairs: how often two samples of a batch are neighbours in the tars; chi2 / df: 1 for a "
        "batch\n  drawn at random, far above it where classes come in runs"
    )
    if report["label"] is None:
        print("  no component cls: name the one that holds the class with --label")
    print(
        f"an epoch, per rank: {epoch['local_bytes'] / _MIB:,.0f} MiB of encoded samples in batches "
        f"from local shards, {epoch['remote_bytes'] / _MIB:,.0f} MiB from remote ones\n"
        f"were they remote, all ranks: {epoch['requests']:,} range requests and up to "
        f"{epoch['requests_for_indexes']:,} for indexes: ${epoch['dollars']:.4f} at "
        f"${epoch['dollars_per_1000_requests']:g} a thousand\n"
        f"at {epoch['samples_per_s']:,.0f} samples/s: {epoch['requests_per_s']:,.1f} requests/s "
        "(S3 bears 5,500/s on one prefix)"
    )


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}"


def _no_nan(value: Any) -> Any:
    """JSON knows no NaN."""
    if isinstance(value, dict):
        return {key: _no_nan(item) for key, item in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value


# ---- bench -----------------------------------------------------------------------------------


def _bench(options: argparse.Namespace) -> int:
    dataset = Dataset(options.shards)
    ext = _image_extensions(dataset)
    field: Field = Raw(ext) if options.crop is None else RandomResizedCrop(options.crop, ext)
    with Loader(
        dataset,
        batch_size=min(options.batch_size, len(dataset)),
        fields={"image": field},
        shuffle=not options.no_shuffle,
        seed=options.seed,
        lanes=options.lanes,
        window_samples=options.window,
        threads=options.threads,
        on_bad_sample="substitute",
        rank=0,
        world_size=1,
    ) as loader:
        next(iter(loader))  # warms up: threads, memory, the first indexes
        before, cpu, began = loader.stats(), time.process_time(), time.monotonic()
        while time.monotonic() - began < options.seconds:
            for _ in loader:
                if time.monotonic() - began >= options.seconds:
                    break
        wall, cpu = time.monotonic() - began, time.process_time() - cpu
        after = loader.stats()
    done = {
        key: after[key] - before[key]
        for key in ("samples", "bytes", "read_s", "decode_s", "wait_s", "idle_s")
    }
    report = {
        "samples_per_s": done["samples"] / wall,
        "samples_per_cpu_s": done["samples"] / cpu,
        "bytes_per_s": done["bytes"] / wall,
        "read_share": done["read_s"] / max(done["read_s"] + done["decode_s"], 1e-9),
        "wait_share": done["wait_s"] / wall,
    }
    if options.json:
        print(json.dumps(report, sort_keys=True))
        return 0
    print(
        f"{report['samples_per_s']:,.0f} samples/s, {report['bytes_per_s'] / 1e6:,.0f} MB/s read, "
        f"{report['samples_per_cpu_s']:,.0f} samples per CPU second"
    )
    print(
        f"threads: {report['read_share']:.0%} reading, {1 - report['read_share']:.0%} decoding; "
        f"the consumer waited {report['wait_share']:.0%} of the time"
    )
    return 0


def _image_extensions(dataset: Dataset) -> str:
    """The image components if samples have any, else the first component."""
    if len(dataset) == 0:
        raise ValueError(f"{dataset!r}: no samples, expected some to read")
    names = [name for name, _, _ in dataset.find(0)[2]]
    return IMAGE_EXTENSIONS if set(names) & set(IMAGE_EXTENSIONS.split(";")) else names[0]


# ---- view ------------------------------------------------------------------------------------


def _view(options: argparse.Namespace) -> int:
    dataset = Dataset(options.shards)
    field = CenterCrop(options.crop) if options.center else RandomResizedCrop(options.crop)
    with Loader(
        dataset,
        batch_size=options.count,
        fields={"image": field},
        seed=options.seed,
        last="pad",
        on_bad_sample="substitute",
        rank=0,
        world_size=1,
    ) as loader:
        batch = next(iter(loader))
    images = batch["image"][batch.valid]
    across = math.ceil(math.sqrt(len(images) * 1.5))
    down = math.ceil(len(images) / across)
    sheet = np.full((down, across, *images.shape[1:]), 255, np.uint8)
    sheet.reshape(-1, *images.shape[1:])[: len(images)] = images
    picture = sheet.swapaxes(1, 2).reshape(down * options.crop, across * options.crop, 3)
    try:
        Pillow.fromarray(picture).save(options.output)
    except (OSError, ValueError) as error:
        raise StoreError(
            f"{options.output}: {error}, expected a file such as batch.png that can be written"
        ) from error
    if options.json:
        keys = [key for key, real in zip(batch.sample_keys, batch.valid, strict=True) if real]
        print(json.dumps({"output": str(options.output), "keys": keys}))
    else:
        print(f"{options.output}: {len(images)} images of epoch 0, batch 0", file=sys.stderr)
    return 0


# ---- prefetch ------------------------------------------------------------------------------------


def _prefetch_all(options: argparse.Namespace) -> int:
    began = time.monotonic()
    fetched = prefetch(
        options.shards,
        cache_dir=options.cache_dir,
        cache_bytes=options.cache_bytes,
        progress=_bar if sys.stderr.isatty() else _lines(),
    )
    if sys.stderr.isatty():
        no_bar()
    report = {"fetched_bytes": fetched, "seconds": time.monotonic() - began}
    if options.json:
        print(json.dumps(report, sort_keys=True))
    else:
        print(f"{fetched / _MIB:,.1f} MiB fetched into {options.cache_dir}; the rest was there")
    return 0


def _lines() -> Callable[[int, int], None]:
    """A plain line now and then, where there is no terminal."""
    told = time.monotonic()

    def tell(done: int, total: int) -> None:
        nonlocal told
        if time.monotonic() - told > 10:
            told = time.monotonic()
            print(f"{done / _MIB:,.0f} of {total / _MIB:,.0f} MiB", file=sys.stderr)

    return tell


def _bar(done: int, total: int) -> None:
    bar("fetching", done, total, f"{done / _MIB:,.0f} of {total / _MIB:,.0f} MiB")


def bar(label: str, done: int, total: int, told: str) -> None:
    """Draw how far it is, over what was drawn last."""
    filled = 30 * done // max(total, 1)
    print(
        f"\r\x1b[K{label} [{'#' * filled}{'.' * (30 - filled)}] {told}",
        end="",
        file=sys.stderr,
        flush=True,
    )


def no_bar() -> None:
    print("\r\x1b[K", end="", file=sys.stderr, flush=True)
