"""What is measured: the cases by theme, and the bars of the design between them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from benchmarks.measure import Look

Rate = Literal["samples_per_s", "samples_per_cpu_s"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One thing to run.

    Attributes:
        name: Short, unique, typed by people after ``--only``.
        what: One line for the table.
        peer: Module of ``benchmarks.peers``.
        settings: Arguments of its ``make``.
        env: Added to the environment of its process.
        proof: ``crc``: its bytes must be those of the set, in a whole epoch. ``grey``: its mean
            grey level must be the loader's. ``none``: it hands nothing over to look at.
        install: The command that installs its peer.
    """

    name: str
    what: str
    peer: str
    settings: dict[str, Any]
    env: dict[str, str] = field(default_factory=dict)
    proof: Literal["crc", "grey", "none"] = "crc"
    install: str = "make setup"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """`ours` must reach at least `least` times the rate of `peer`.

    Attributes:
        rate: ``None`` is that of the theme.
    """

    ours: str
    peer: str
    least: float
    rate: Rate | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Theme:
    """Cases that may be compared, on one set, by one rate.

    Attributes:
        images: Size of the set; `images_quick` with ``--quick``.
        seconds: Least time of a run; `seconds_quick` with ``--quick``.
        served: The set is read over HTTP, from an nginx on this machine.
    """

    name: str
    title: str
    note: str
    rate: Rate
    look: Look
    ours: str
    cases: tuple[Case, ...]
    bars: tuple[Bar, ...]
    images: int
    seconds: float
    images_quick: int = 256
    seconds_quick: float = 0.3
    served: bool = False


_RAW = {"image": "raw", "threads": 2, "batch": 256}
_CROP = {"image": "crop", "shuffle": False, "batch": 64}
_PEERS = "scripts/install_peers.sh"
_BIG_READS = {"GOPEN_BUFFER": str(1 << 20)}

_OURS = Case(
    name="tarpon",
    what="tarpon.Loader, 2 threads",
    peer="ours",
    settings={**_RAW, "shuffle": False},
)
_OURS_SHUFFLED = Case(
    name="tarpon-shuffled",
    what="tarpon.Loader, 2 threads, shuffle=True",
    peer="ours",
    settings={**_RAW, "shuffle": True},
)
_OURS_GLOBAL = Case(
    name="tarpon-global",
    what='the same with window_samples="all": a permutation of the whole set',
    peer="ours",
    settings={**_RAW, "shuffle": True, "window": "all"},
)
_WEBDATASET = Case(
    name="webdataset",
    what="webdataset, 1 process",
    peer="webdataset",
    settings={"shuffle": False, "workers": 0, "batch": 64},
)
_DALI = Case(
    name="dali-reader",
    what="DALI fn.readers.webdataset with index, CPU, 2 threads (maps, does not copy)",
    peer="dali",
    settings=_RAW,
)
_DALI_COPIES = Case(
    name="dali-reader-copies",
    what="the same with dont_use_mmap=True",
    peer="dali",
    settings={**_RAW, "mapped": False},
)


def _pread(name: str, what: str, *, memory: str, shuffle: bool = False) -> Case:
    settings = {"threads": 2, "shuffle": shuffle, "memory": memory, "batch": 256}
    return Case(name=name, what=what, peer="pread", settings=settings)


def _own_format(peer: str, what: str) -> tuple[Case, Case]:
    """A peer that reads its own format: as it comes, and with workers."""

    def case(suffix: str, how: str, workers: int) -> Case:
        return Case(
            name=f"{peer}{suffix}",
            what=f"{what}, {how}",
            peer=peer,
            settings={"workers": workers, "batch": 256},
            install=_PEERS,
        )

    return case("", "in this process", 0), case("-workers", "2 workers", 2)


_MDS = _own_format("streaming", "mosaicml-streaming, MDS shards made from the set")
_LITDATA = _own_format("litdata", "litdata, optimized chunks made from the set")

_PREAD = _pread("pread", "ceiling: bare pread, 2 C threads, into batches", memory="batches")
_PREAD_HOT = _pread(
    "pread-hot", "ceiling: bare pread, 2 C threads, all onto the same pages", memory="hot"
)
_PREAD_SHUFFLED = _pread(
    "pread-shuffled", "ceiling: as pread, in random order", memory="batches", shuffle=True
)

RAW = Theme(
    name="raw",
    title="Raw samples from tar shards on a local disk, page cache warm",
    note="The consumer takes the length of every JPEG and the value of every label.",
    rate="samples_per_s",
    look="count",
    ours="tarpon",
    images=4096,
    seconds=1.0,
    cases=(
        _OURS,
        _PREAD,
        _WEBDATASET,
        _DALI,
        _OURS_SHUFFLED,
        _OURS_GLOBAL,
        _PREAD_SHUFFLED,
        _PREAD_HOT,
        _DALI_COPIES,
        Case(
            name="webdataset-buffer",
            what="webdataset, 1 process, GOPEN_BUFFER=1 MiB",
            peer="webdataset",
            settings={"shuffle": False, "workers": 0, "batch": 64},
            env=_BIG_READS,
        ),
        Case(
            name="webdataset-workers",
            what="webdataset, 2 DataLoader workers, lists of 64, GOPEN_BUFFER=1 MiB",
            peer="webdataset",
            settings={"shuffle": False, "workers": 2, "batch": 64},
            env=_BIG_READS,
        ),
        Case(
            name="webdataset-shuffled",
            what="webdataset, 1 process, shuffled shards and a buffer of 1,000",
            peer="webdataset",
            settings={"shuffle": True, "workers": 0, "batch": 64},
        ),
        Case(
            name="torch-files",
            what="torch DataLoader over loose files, in this process, shuffled",
            peer="torch_files",
            settings={"shuffle": True, "workers": 0, "batch": 256},
        ),
        Case(
            name="torch-files-workers",
            what="torch DataLoader over loose files, 2 workers, shuffled",
            peer="torch_files",
            settings={"shuffle": True, "workers": 2, "batch": 256},
        ),
        *_MDS,
        *_LITDATA,
    ),
    bars=(
        Bar(ours="tarpon", peer="pread", least=0.85),
        Bar(ours="tarpon-shuffled", peer="pread-shuffled", least=0.85),
        Bar(ours="tarpon", peer="webdataset", least=8),
        Bar(ours="tarpon-shuffled", peer="webdataset-shuffled", least=8),
        Bar(ours="tarpon", peer="dali-reader", least=1.1),
    ),
)

TOUCH = Theme(
    name="touch",
    title="The same, and the consumer reads every byte",
    note=(
        "One Python thread adds up the 64-bit words of every JPEG, so that memory which is only "
        "mapped has to be there."
    ),
    rate="samples_per_s",
    look="touch",
    ours="tarpon",
    images=4096,
    seconds=1.0,
    cases=(_OURS, _DALI, _DALI_COPIES, _WEBDATASET, _MDS[0], _LITDATA[0]),
    bars=(Bar(ours="tarpon", peer="dali-reader", least=1.1),),
)


def _pillow(name: str, what: str, *, draft: bool, crop_first: bool) -> Case:
    settings = {"draft": draft, "crop_first": crop_first, "batch": 64}
    return Case(name=name, what=what, peer="pillow", settings=settings, proof="grey")


def _dali(name: str, what: str, **settings: bool) -> Case:
    all_settings = {"image": "crop", "threads": 2, "batch": 64, **settings}
    return Case(name=name, what=what, peer="dali", settings=all_settings, proof="grey")


def _simplejpeg(name: str, what: str, *, scaled: bool, fast: bool) -> Case:
    settings = {"scaled": scaled, "fast": fast, "batch": 64}
    return Case(
        name=name,
        what=f"simplejpeg of the whole JPEG {what}, then Pillow's resize(box=), 1 thread",
        peer="simplejpeg",
        settings=settings,
        proof="grey",
        install=_PEERS,
    )


def _torch(name: str, what: str, *, draft: bool, workers: int) -> Case:
    settings = {"draft": draft, "workers": workers, "batch": 64}
    what = f"torch DataLoader over loose files, {what}"
    return Case(name=name, what=what, peer="torch_decode", settings=settings, proof="grey")


DECODE = Theme(
    name="decode",
    title="JPEG decode and RandomResizedCrop(224), per CPU second",
    note=(
        "tarpon and DALI read from the shards, torch from loose files, Pillow, simplejpeg and "
        "libjpeg from memory. All but DALI, which draws its own from the same distribution, decode "
        "the same boxes. MB/s are of pixels."
    ),
    rate="samples_per_cpu_s",
    look="count",
    ours="tarpon",
    images=1024,
    seconds=2.0,
    cases=(
        Case(
            name="tarpon",
            what="tarpon.Loader, 2 threads",
            peer="ours",
            settings={**_CROP, "threads": 2},
            proof="grey",
        ),
        Case(
            name="tarpon-1",
            what="tarpon.Loader, 1 thread",
            peer="ours",
            settings={**_CROP, "threads": 1},
            proof="grey",
        ),
        _pillow(
            "pillow",
            "Pillow, resize(box=), draft off, 1 thread",
            draft=False,
            crop_first=False,
        ),
        _pillow(
            "pillow-draft",
            "Pillow, resize(box=), draft on, 1 thread",
            draft=True,
            crop_first=False,
        ),
        _pillow(
            "pillow-crop",
            "Pillow, crop then resize as torchvision does, draft off, 1 thread",
            draft=False,
            crop_first=True,
        ),
        _dali("dali", "DALI CPU, image_random_crop + resize, antialias on, 2 threads"),
        _dali(
            "dali-fast",
            "DALI CPU, the same with use_fast_idct=True",
            fast_idct=True,
        ),
        _dali("dali-aliased", "DALI CPU, antialias off: not the same pixels", antialias=False),
        _simplejpeg("simplejpeg", "at full size", scaled=False, fast=False),
        _simplejpeg("simplejpeg-scaled", "also at 1/2, 1/4, 1/8", scaled=True, fast=False),
        _simplejpeg("simplejpeg-fast", "so scaled, fastdct, fastupsample", scaled=True, fast=True),
        _torch("torch-files", "Pillow crop then resize, in this process", draft=False, workers=0),
        _torch("torch-files-workers", "Pillow crop then resize, 2 workers", draft=False, workers=2),
        _torch(
            "torch-files-draft", "Pillow resize(box=), draft on, 2 workers", draft=True, workers=2
        ),
        Case(
            name="libjpeg",
            what="ceiling: libjpeg-turbo crop decode, no resize, 1 thread",
            peer="libjpeg",
            settings={"scaled": True},
            proof="none",
        ),
    ),
    bars=(
        Bar(ours="tarpon", peer="pillow", least=2.1),
        Bar(ours="tarpon", peer="pillow-draft", least=2.1),
        Bar(ours="tarpon", peer="dali", least=2.1),
        Bar(ours="tarpon", peer="dali-fast", least=2.1),
        Bar(ours="tarpon", peer="libjpeg", least=0.85),
        Bar(ours="tarpon-1", peer="libjpeg", least=0.85),
    ),
)


def _http_ours(name: str, what: str, **settings: Any) -> Case:
    return Case(name=name, what=what, peer="ours", settings={**_RAW, "copies": 16, **settings})


def _curl_multi(name: str, connections: int, how: str) -> Case:
    sizes = {"range_bytes": 4 << 20, "buffer_bytes": 512 << 10}
    return Case(
        name=name,
        what=f"ceiling: bare libcurl multi, 1 C thread, ranges of 4 MiB, {how}",
        peer="curl_multi",
        settings={"connections": connections, **sizes},
    )


def _http_webdataset(workers: int) -> Case:
    how = f"{workers} DataLoader workers, lists of 64" if workers else "1 process"
    return Case(
        name=f"webdataset-{workers}" if workers else "webdataset",
        what=f"webdataset through curl, {how}, GOPEN_BUFFER=1 MiB",
        peer="webdataset",
        settings={"shuffle": False, "workers": workers, "batch": 64},
        env=_BIG_READS,
    )


def _s3torch(reader: str, threads: int) -> Case:
    sizes = {"part_bytes": 8 << 20, "read_bytes": 8 << 20}
    return Case(
        name=f"s3torch-{reader.partition('_')[0]}",
        what=f"s3torchconnector, {reader} reader, {threads} shards at once, 8 MiB a part",
        peer="s3torch",
        settings={"reader": reader, "threads": threads, **sizes},
        install=_PEERS,
    )


def _obstore(how: str, threads: int, what: str) -> Case:
    return Case(
        name=f"obstore-{how}",
        what=f"obstore, {what}",
        peer="obstore_reads",
        settings={"how": how, "threads": threads, "piece_bytes": 8 << 20},
        install=_PEERS,
    )


def _per_cpu(peer: str, most_cpu: float) -> tuple[Bar, ...]:
    """Ours must take at most `most_cpu` times the peer's CPU seconds, in either order."""
    return tuple(
        Bar(ours=ours, peer=peer, least=round(1 / most_cpu, 2), rate="samples_per_cpu_s")
        for ours in ("tarpon", "tarpon-shuffled")
    )


HTTP = Theme(
    name="http",
    title="Raw samples over HTTP, from an nginx on the same cores",
    note=(
        "nginx and the client share the cores and the loopback, the page cache is warm, and CPU "
        "seconds are the client's alone. The consumer takes the length of every JPEG and the "
        "value of every label; boto3, obstore, s3torchconnector and curl-multi fetch the tars' "
        "bytes and look for no samples. An epoch of tarpon is 16 times the set, as shards of so "
        "many names, because samples that are in memory at the end of an epoch serve the next one "
        "too: of a set no larger than its window, that would be all of them. "
        "What came over the network is told below; where it is less than what was handed over, "
        "bars are void."
    ),
    rate="samples_per_s",
    look="count",
    ours="tarpon",
    images=4096,
    seconds=1.0,
    served=True,
    cases=(
        _http_ours("tarpon", "tarpon.Loader, 2 threads", shuffle=False),
        _http_ours(
            "tarpon-shuffled",
            "the same, shuffle=True, window_samples=4,096",
            shuffle=True,
            window=4096,
        ),
        _curl_multi("curl-multi", 8, "8 connections"),
        _curl_multi(
            "curl-multi-1", 1, "1 connection, whose memory never leaves the processor's cache"
        ),
        *map(_http_webdataset, (0, 2, 4)),
        Case(
            name="boto3",
            what="boto3, 16 threads, ranges of 8 MiB",
            peer="boto3_get",
            settings={"threads": 16, "range_bytes": 8 << 20},
        ),
        _s3torch("sequential", 2),
        _s3torch("range_based", 2),
        _obstore("ranges", 4, "4 threads, ranges of 8 MiB"),
        _obstore("stream", 4, "4 shards at once as streams, 8 MiB a piece"),
    ),
    bars=(
        Bar(ours="tarpon", peer="curl-multi", least=0.9),
        Bar(ours="tarpon-shuffled", peer="curl-multi", least=0.9),
        *(
            Bar(ours=ours, peer=peer, least=3.5)
            for ours in ("tarpon", "tarpon-shuffled")
            for peer in ("webdataset", "webdataset-2", "webdataset-4")
        ),
        *_per_cpu("boto3", 0.8),
        *(
            bar
            for peer in ("s3torch-sequential", "s3torch-range", "obstore-ranges", "obstore-stream")
            for bar in _per_cpu(peer, 0.9)
        ),
    ),
)

THEMES = (RAW, TOUCH, DECODE, HTTP)
