"""What a batch job leaves in its output folder, and how it is known which of it is there.

    plan.json                    what is scored by which model, in what parts; written first
    part-000000.parquet ...      scores of samples [0, part_samples), ... of the dataset
    .parts/part-000000.json ...  counts of each part, written before it
    .parts/rank-0-of-1.json ...  how long each process took
    summary.json                 the sums, written last of all

A part is cut by the position in the dataset alone, so the files are the same whoever writes them
and however often the job was killed. Nothing in here knows torch.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from components import manifest
from components.store import Store

PLAN, SUMMARY = "plan.json", "summary.json"
_METADATA = b"tarpon.predict"
_HOW_ASKED = ("model_name", "model_version")


class OtherJobError(ValueError):
    """The output folder holds the scores of another model or other samples."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What decides every byte of the parts; it stands in `plan.json` and in each part.

    Args:
        model_uri, model_name, model_version, model_digest: See `logged_model.LoggedModel`.
        dataset_fingerprint: Of the shards, as `tarpon.open(shards).fingerprint`.
        samples: In the dataset.
        batch_size: Images the network sees at once.
        part_samples: Samples in a part but the last; a multiple of `batch_size`.
    """

    model_uri: str
    model_name: str
    model_version: str
    model_digest: str
    classes: list[str]
    image_size: int
    dataset_fingerprint: str
    samples: int
    batch_size: int
    part_samples: int
    format: int = 1

    @property
    def parts(self) -> int:
        return -(-self.samples // self.part_samples)

    def range(self, part: int) -> tuple[int, int]:
        """First sample of a part, and one past its last."""
        first = part * self.part_samples
        return first, min(first + self.part_samples, self.samples)

    def publish(self, store: Store) -> Plan:
        """Put `plan.json`, or take over the one that is there; returns the plan that holds.

        By which alias or version a model was asked for makes no other job of it.

        Raises:
            OtherJobError: Another plan is there; says what differs.
        """
        if not store.exists(PLAN):
            store.publish(PLAN, manifest.dump(dataclasses.asdict(self)))
            return self
        mine, theirs = dataclasses.asdict(self), json.loads(store.read_bytes(PLAN))
        names = [n for n in mine if n not in _HOW_ASKED and theirs.get(n) != mine[n]]
        if names:
            found = {name: theirs.get(name) for name in names}
            expected = {name: mine[name] for name in names}
            raise OtherJobError(
                f"{store.url(PLAN)}: found the scores of another job, {_short(found)}, "
                f"expected {_short(expected)}; choose another output, or remove that folder"
            )
        return Plan(**theirs)

    def schema(self) -> pa.Schema:
        """One row per sample, in the dataset's order; scores are null where `error` is not.

        `probabilities` has one number per class, but no fixed size: pyarrow cannot read those
        back from Parquet where some are null.
        """
        columns = [
            ("key", pa.string()),
            ("shard", pa.string()),
            ("index", pa.int64()),
            ("predicted", pa.string()),
            ("probability", pa.float32()),
            ("probabilities", pa.list_(pa.float32())),
            ("error", pa.string()),
        ]
        about = json.dumps(dataclasses.asdict(self), sort_keys=True, ensure_ascii=False)
        return pa.schema(columns, metadata={_METADATA: about.encode()})


@dataclasses.dataclass(slots=True)
class Rows:
    """Rows of one part, gathered batch by batch."""

    keys: list[str] = dataclasses.field(default_factory=list)
    shards: list[str] = dataclasses.field(default_factory=list)
    errors: list[str | None] = dataclasses.field(default_factory=list)
    scores: list[npt.NDArray[np.float32]] = dataclasses.field(default_factory=list)

    def __len__(self) -> int:
        return len(self.keys)


def name_of(part: int) -> str:
    return f"part-{part:06d}"


def finished(store: Store, plan: Plan) -> set[int]:
    """The parts that are there, whole and counted."""
    there = set(store.list())
    return {
        part
        for part in range(plan.parts)
        if {f"{name_of(part)}.parquet", f".parts/{name_of(part)}.json"} <= there
    }


def write(store: Store, plan: Plan, part: int, rows: Rows) -> None:
    """Put one part: its counts, then the part itself."""
    scores = np.concatenate(rows.scores)
    bad = np.array([error is not None for error in rows.errors])
    best = scores.argmax(1)
    classes = np.array(plan.classes, dtype=object)
    ends = np.cumsum(np.where(bad, 0, len(classes)))
    offsets = pa.array(np.concatenate([[0], ends]), pa.int32())
    flat = pa.array(scores[~bad].reshape(-1), pa.float32())
    first, end = plan.range(part)
    columns = [
        pa.array(rows.keys, pa.string()),
        pa.array(rows.shards, pa.string()),
        pa.array(np.arange(first, end)),
        pa.array(classes[best], pa.string(), mask=bad),
        pa.array(scores[np.arange(len(scores)), best], pa.float32(), mask=bad),
        pa.ListArray.from_arrays(offsets, flat, mask=pa.array(bad)),
        pa.array(rows.errors, pa.string()),
    ]
    table = pa.Table.from_arrays(columns, schema=plan.schema())
    chosen = np.bincount(best[~bad], minlength=len(classes))
    counts = {
        "samples": len(rows),
        "bad_samples": int(bad.sum()),
        "predicted": {name: int(n) for name, n in zip(plan.classes, chosen, strict=True)},
    }
    store.write_bytes(f".parts/{name_of(part)}.json", manifest.dump(counts))
    with store.open_temp(f"{name_of(part)}.parquet") as file:
        pq.write_table(table, file, compression="zstd")


def totals(store: Store, plan: Plan) -> dict[str, Any]:
    """The sums over all parts."""
    bad, predicted = 0, dict.fromkeys(plan.classes, 0)
    for part in range(plan.parts):
        counts = json.loads(store.read_bytes(f".parts/{name_of(part)}.json"))
        bad += counts["bad_samples"]
        for name, count in counts["predicted"].items():
            predicted[name] += count
    return {"bad_samples": bad, "predicted": predicted}


def summarise(store: Store, plan: Plan, counted: dict[str, Any]) -> None:
    """Write `summary.json`: the plan, the counts, and the time of every process that took part.

    Of processes that end at the same moment each may write it; the last one knows all times.
    """
    ranks = [
        json.loads(store.read_bytes(name))
        for name in store.list(".parts")
        if name.rpartition("/")[2].startswith("rank-")
    ]
    took = {key: sum(rank[key] for rank in ranks) for key in ("scored", "wait_s")}
    longest = max(rank["seconds"] for rank in ranks)
    rate = sum(rank["scored"] / rank["seconds"] for rank in ranks if rank["seconds"] > 0)
    summary = dataclasses.asdict(plan) | counted | took | {"parts": plan.parts}
    summary |= {"processes": len(ranks), "seconds": longest, "images_per_s": rate}
    store.write_bytes(SUMMARY, manifest.dump(summary))


def _short(values: dict[str, Any]) -> str:
    text = ", ".join(f"{name}={value!r}" for name, value in values.items())
    return text if len(text) <= 400 else f"{text[:400]}..."
