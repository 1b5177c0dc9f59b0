"""What a hundred million photographs in 1,000 shards would cost to read from S3, without the data.

    python -m benchmarks.scale_plan                  # 8 ranks; --world-size, --shards, --samples

Makes one sparse tar of 100,000 samples of 110 KB with its index, links it 1,000 times, and runs
`tarpon stats --shuffle` on the list, which reads indexes and labels alone.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

BLOCK = 512
CLS_BYTES, JPG_BYTES = 3, 110_000
STRIDE = 2 * BLOCK + BLOCK + -(-JPG_BYTES // BLOCK) * BLOCK


def make_shard(tar: Path, samples: int) -> None:
    """A tar whose images are holes, and its index."""
    lines = [f"v1.2 {samples}"]
    with tar.open("wb") as file:
        for number in range(samples):
            at = number * STRIDE
            label = tarfile.TarInfo(f"{number:08}.cls")
            label.size = CLS_BYTES
            image = tarfile.TarInfo(f"{number:08}.jpg")
            image.size = JPG_BYTES
            file.seek(at)
            file.write(label.tobuf(tarfile.USTAR_FORMAT) + b"%03d" % (number % 1000))
            file.seek(at + 2 * BLOCK)
            file.write(image.tobuf(tarfile.USTAR_FORMAT))
            lines.append(
                f"cls {at + BLOCK} {CLS_BYTES} {number:08}.cls "
                f"jpg {at + 3 * BLOCK} {JPG_BYTES} {number:08}.jpg"
            )
        file.truncate(samples * STRIDE + 2 * BLOCK)
    tar.with_suffix(".idx").write_text("\n".join(lines) + "\n")


def make_set(folder: Path, shards: int, samples: int) -> Path:
    first = folder / "train-000000.tar"
    make_shard(first, samples)
    for number in range(1, shards):
        for suffix in (".tar", ".idx"):
            os.link(first.with_suffix(suffix), folder / f"train-{number:06}{suffix}")
    entry = {"nsamples": samples, "filesize": first.stat().st_size}
    listed = [entry | {"url": f"train-{number:06}.tar"} for number in range(shards)]
    out = folder / "train.json"
    out.write_text(json.dumps({"wids_version": 1, "shardlist": listed}))
    return out


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--shards", type=int, default=1000)
    parser.add_argument("--samples", type=int, default=100_000, help="of each shard")
    parser.add_argument("--world-size", type=int, default=8)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        shards = make_set(Path(folder), options.shards, options.samples)
        command = [sys.executable, "-m", "tarpon.cli", "stats", "--shuffle"]
        command += ["--world-size", str(options.world_size), str(shards)]
        began = time.monotonic()
        done = subprocess.run(command)
        took = time.monotonic() - began
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(f"\nthe plan itself: {took:.1f} s, {peak:.0f} MiB resident at most")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
