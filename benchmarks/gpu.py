"""python -m benchmarks.gpu: DALI fed by tarpon beside DALI fed otherwise, on a GPU or on CPUs."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from rich.console import Console
from tarpon.cpus import usable_cpus

from benchmarks import data, report
from benchmarks.cases import Bar, Case, Theme
from benchmarks.data import DataSet
from benchmarks.runner import PeerError, Result, Spread, run_module, run_theme, served
from tests.servers import faultproxy, swift
from tests.servers.faults import Rule, latency

_ROOT = Path(__file__).resolve().parent.parent
_LATENCY_S = 0.005
# Over HTTP an epoch is so many times the set and mixes within so many samples: else the loader
# would hold the whole set in memory, and read it once.
_COPIES, _WINDOW = 4, 512
_S3_COPIES, _S3_IMAGES = 2, 256  # DALI's reader takes a minute for as many
FEEDS, PLANS, HTTP, S3, STEP = "feeds", "plans", "http", "s3", "step"
NAMES = (FEEDS, PLANS, HTTP, S3, STEP)


def themes(device: str, threads: int, seconds: float) -> list[Theme]:
    """What is compared by rate; `seconds` is the least time of a run."""
    batch = 256 if device == "gpu" else 64
    told: dict[str, Any] = {"device": device, "threads": threads, "batch": batch}

    def case(name: str, what: str, source: str, **more: Any) -> Case:
        settings = told | {"source": source} | more
        return Case(name=name, what=what, peer="dali_graph", settings=settings, proof="grey")

    def webdataset(**more: Any) -> Case:
        return Case(
            name="webdataset",
            what=f"webdataset + torch DataLoader, {threads} workers, Pillow crop and resize",
            peer="webdataset_torch",
            settings={"device": device, "batch": batch, "workers": threads} | more,
            proof="grey",
        )

    def ours(**more: Any) -> Case:
        return case("tarpon", "tarpon.dali.ImagePipeline, shuffled, as it comes", "tarpon", **more)

    common = {"rate": "samples_per_s", "look": "count", "images": 1024, "images_quick": 256}
    common |= {"ours": "tarpon", "seconds": seconds, "seconds_quick": 0.5, "served": False}
    where = "a GPU" if device == "gpu" else f"{threads} CPU threads"
    note = (
        f"Random crops of 224, float32, NCHW, in batches of {batch}; DALI on {where}, 2 batches "
        "ahead."
    )
    return [
        Theme(
            name=FEEDS,
            title="DALI fed by tarpon, and fed otherwise; local shards, page cache warm",
            note=note,
            cases=(
                ours(),
                case("memory", "the same graph, all its inputs made before", "memory"),
                case("reader", "DALI fn.readers.webdataset with index, the same graph", "reader"),
                webdataset(),
            ),
            bars=(
                Bar(ours="tarpon", peer="memory", least=0.97 if device == "gpu" else 0.95),
                Bar(ours="tarpon", peer="reader", least=1.0),
            ),
            **common,
        ),
        Theme(
            name=PLANS,
            title="Ways to decode a random crop, fed from memory",
            note=note,
            cases=(
                case("random-crop", "decoders.image_random_crop", "memory", crops="dali"),
                case("slice", "decoders.image_slice of our windows", "memory", crops="tarpon"),
                case("roi", "decoders.image, then resize of our windows", "memory", crops="roi"),
            ),
            bars=(),
            **(common | {"ours": "random-crop"}),
        ),
        Theme(
            name=HTTP,
            title=f"The same over HTTP, {_LATENCY_S * 1e3:.0f} ms added to each request",
            note=f"{note} nginx on the same cores, behind a proxy that makes requests wait.",
            cases=(ours(copies=_COPIES, window=_WINDOW), webdataset(copies=_COPIES)),
            bars=(Bar(ours="tarpon", peer="webdataset", least=2.0),),
            **common,
        ),
        Theme(
            name=S3,
            title=f"The same from S3, {_LATENCY_S * 1e3:.0f} ms added to each request",
            note=f"{note} OpenStack Swift on the same cores, behind a proxy that makes requests "
            "wait. The reader has its indexes on the local disk.",
            cases=(
                ours(copies=_S3_COPIES, window=_S3_IMAGES),
                case("reader", "DALI fn.readers.webdataset", "reader", copies=_S3_COPIES),
            ),
            bars=(Bar(ours="tarpon", peer="reader", least=2.0),),
            **common,
        ),
    ]


@contextmanager
def _far(made: DataSet) -> Iterator[DataSet]:
    """The set behind nginx and a link of some latency."""
    rule = Rule(name="far", fault=latency(_LATENCY_S))
    with served(made) as near, faultproxy.running(near.url or "", rule) as proxy:
        yield dataclasses.replace(near, url=proxy.url)


@contextmanager
def _in_bucket(made: DataSet) -> Iterator[DataSet]:
    """The set in an S3 store behind the same link, for whoever looks into the environment."""
    rule = Rule(name="far", fault=latency(_LATENCY_S))
    with swift.running() as store, faultproxy.running(store.endpoint, rule) as proxy:
        bucket = store.bucket()
        placed = dataclasses.replace(made, url=f"s3://{bucket.name}")
        for source, path in zip(placed.copies(_S3_COPIES), made.shards * _S3_COPIES, strict=True):
            for ending in (".tar", ".idx"):
                key = source.removeprefix(f"{placed.url}/").removesuffix(".tar") + ending
                bucket.client.upload_file(path.removesuffix(".tar") + ending, bucket.name, key)
        os.environ |= {
            "AWS_ACCESS_KEY_ID": store.access_key,
            "AWS_SECRET_ACCESS_KEY": store.secret_key,
            "AWS_REGION": store.region,
            "AWS_ENDPOINT_URL": proxy.url,
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        yield placed


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """What training steps cost; a number per round in each list, in seconds."""

    model: str
    real_s: list[float]
    synthetic_s: list[float]
    wait_s: list[float]


def _model(device: str) -> str:
    """ResNet-50 where torchvision has it and a GPU carries it, else our small network."""
    if device == "cpu":
        return "convnet"
    try:
        import torchvision.models  # noqa: F401
    except Exception:
        return "convnet"
    return "resnet50"


def _steps(made: DataSet, asked: argparse.Namespace, tick: Callable[[str], None]) -> Steps:
    gpu = asked.device == "gpu"
    found = Steps(model=_model(asked.device), real_s=[], synthetic_s=[], wait_s=[])
    told = {
        "shards": made.shards,
        "device": asked.device,
        "threads": asked.threads if gpu else max(1, asked.threads - 1),
        "batch": 256 if gpu else 32,
        "size": 224,
        "steps": 10 if asked.quick else 100 if gpu else 20,
        "model": found.model,
    }
    for number in range(asked.runs):
        tick(f"round {number + 1} of {asked.runs}, {STEP}")
        for name, value in run_module("benchmarks.gpu_probe", told, name=STEP).items():
            getattr(found, name).append(value)
    return found


def _lines(found: Steps, device: str) -> list[str]:
    share = Spread.of([w / r for w, r in zip(found.wait_s, found.real_s, strict=True)])
    most = 0.01 if device == "gpu" else 0.02
    met = "reached" if share.median <= most else "**missed**"
    where = (
        "bfloat16 autocast on the GPU"
        if device == "gpu"
        else "float32 on one CPU thread, DALI and the loader on the other cores"
    )
    return [
        "## Training steps of real pictures, and of one batch again and again",
        "",
        f"{found.model}, SGD, crops of 224, {where}. Waiting is the pipeline's own `wait_s`.",
        "",
        "| step, real, ms | step, synthetic, ms | waited for data, median (range) | bar |  |",
        "| --- | --- | --- | --- | --- |",
        f"| {Spread.of(found.real_s).median * 1e3:.1f} "
        f"| {Spread.of(found.synthetic_s).median * 1e3:.1f} "
        f"| {share.median:.2%} ({share.low:.2%} to {share.high:.2%}) | <= {most:.0%} | {met} |",
    ]


def _placed(
    theme: str, made: DataSet, asked: argparse.Namespace
) -> AbstractContextManager[DataSet]:
    """The set where a theme wants it."""
    if theme == HTTP:
        return _far(made)
    if theme == S3:
        return _in_bucket(data.make(asked.data, min(made.samples, _S3_IMAGES)))
    return nullcontext(made)


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--theme", choices=NAMES, help="this one instead of all")
    parser.add_argument("--only", metavar="NAME", help="cases whose name contains NAME")
    parser.add_argument("--quick", action="store_true", help="a small set and short runs")
    parser.add_argument("--runs", type=int, default=3, help="rounds, default 3")
    parser.add_argument("--threads", type=int, default=usable_cpus(), help="of each side")
    parser.add_argument("--images", type=int, help="size of the set, default 1024")
    parser.add_argument("--output", type=Path, help="the page; default below benchmarks/results")
    parser.add_argument("--data", type=Path, default=_ROOT / "build" / "bench-data")
    asked = parser.parse_args(arguments)
    if asked.runs < 1 or asked.threads < 1 or (asked.images or 1) < 1:
        parser.error("--runs, --threads and --images: expected at least 1")
    return asked


def _hardware(device: str) -> str:
    if device == "cpu":
        return "DALI's CPU pipelines: no GPU was used."
    import torch

    return f"DALI on {torch.cuda.get_device_name()}, CUDA {torch.version.cuda}."


def main(arguments: list[str] | None = None) -> int:
    asked = _arguments(arguments)
    console = Console(stderr=True)
    before = os.getloadavg()[0]

    def tick(what: str) -> None:
        console.print(what, highlight=False)

    results: list[Result] = []
    command = f"`python -m benchmarks.gpu --device {asked.device}`"
    sections = [["## Device", "", f"{_hardware(asked.device)} Made by {command}."]]
    try:
        made = data.make(asked.data, asked.images or (256 if asked.quick else 1024))
        for theme in themes(asked.device, asked.threads, 0.5 if asked.quick else 3.0):
            if asked.theme not in (None, theme.name):
                continue
            with _placed(theme.name, made, asked) as where:
                results.append(
                    run_theme(
                        theme,
                        where,
                        runs=asked.runs,
                        seconds=theme.seconds_quick if asked.quick else theme.seconds,
                        only=asked.only,
                        tick=lambda what, name=theme.name: tick(f"{name}: {what}"),
                    )
                )
        if asked.theme in (None, STEP):
            sections.append(_lines(_steps(made, asked, tick), asked.device))
    except PeerError as error:
        console.print(f"benchmarks: {error}", style="red", highlight=False, markup=False)
        return 1
    default = report.default_name().replace(".md", f"-dali-{asked.device}.md")
    output = (asked.output or _ROOT / "benchmarks" / "results" / default).resolve()
    load = (before, os.getloadavg()[0])
    report.write(results, output, runs=asked.runs, load=load, sections=sections)
    print(output.read_text(encoding="utf-8"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
