"""Split: every ok row on one side, nothing torn apart, the same answer whatever the row order."""

from __future__ import annotations

import json
import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from components import catalog
from components.duplicates import clusters, near_pairs
from components.manifest import SPLITS
from components.rules import STRATEGIES
from components.split import __main__ as command
from components.split import run
from components.split.assign import quotas_by_class
from components.split.component import split as component
from components.store import StoreError
from tests.components import synthetic

TIDY = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def split(
    root: Path,
    rows: Sequence[dict[str, Any]],
    *,
    extra: dict[str, pa.DataType] | None = None,
    **how,
) -> tuple[run.SplitReport, list[dict[str, Any]]]:
    url = synthetic.write(root, rows, **(extra or {}))
    report = run.split(url, root=str(root), name="photos", **how)
    return report, catalog.read(report.catalog_url).to_pylist()


def sides_of(rows: list[dict[str, Any]]) -> dict[str, str]:
    return {row["sample_id"]: row["split"] for row in rows if row["status"] == catalog.OK}


# --- near duplicates ---------------------------------------------------------------------------


@TIDY
@given(
    base=st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=12, unique=True),
    flips=st.lists(st.tuples(st.integers(0, 11), st.sets(st.integers(0, 63), max_size=8))),
    bits=st.integers(0, 8),
)
def test_near_pairs_equal_brute_force(base, flips, bits):
    values = set(base)
    for index, places in flips:
        values.add(base[index % len(base)] ^ sum(1 << place for place in places))
    hashes = sorted(values)
    expected = {
        (i, j)
        for j in range(len(hashes))
        for i in range(j)
        if (hashes[i] ^ hashes[j]).bit_count() <= bits
    }
    left, right = near_pairs(np.array(hashes, dtype=np.uint64), bits)
    assert list(zip(left.tolist(), right.tolist(), strict=True)) == sorted(expected)


def test_clusters_chain_and_leave_unknown_hashes_alone():
    chain = [0b0, 0b11, 0b1111, None, 2**64 - 1, 0b0]
    assert clusters(chain, 2).tolist() == [0, 0, 0, 3, 4, 0]
    assert clusters(chain, 0).tolist() == [0, 1, 2, 3, 4, 0]
    assert clusters(chain, None).tolist() == [0, 1, 2, 3, 4, 5]


def test_near_pairs_are_found_among_a_hundred_thousand_hashes():
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, 100_000, dtype=np.uint64)
    hashes[1000] = hashes[7] ^ np.uint64(0b1000_0000_0001_0001)
    left, right = near_pairs(hashes, 4)
    assert (7, 1000) in set(zip(left.tolist(), right.tolist(), strict=True))
    assert len(left) < 10


# --- what every split must keep ------------------------------------------------------------------

ROWS = st.lists(
    st.tuples(
        st.sampled_from("abcd"),  # label
        st.integers(0, 8),  # group
        st.integers(0, 30),  # perceptual hash family
        st.sampled_from([0, 0b1, 0b110]),  # distance inside the family
        st.booleans(),  # quarantined
    ),
    min_size=1,
    max_size=60,
)


def build(drawn) -> list[dict[str, Any]]:
    rows = []
    for number, (label, group, family, flip, bad) in enumerate(drawn):
        phash = synthetic.row(family)["phash"] ^ flip
        values = {"label": label, "group": f"g{group}", "phash": phash}
        values["status"] = catalog.QUARANTINED if bad else catalog.OK
        rows.append(synthetic.row(number, **values))
    return rows


@TIDY
@given(drawn=ROWS, strategy=st.sampled_from(STRATEGIES), seed=st.integers(0, 3))
def test_nothing_is_lost_or_torn_apart(tmp_path, drawn, strategy, seed):
    rows = build(drawn)
    if all(row["status"] != catalog.OK for row in rows):
        rows[0]["status"] = catalog.OK
    report, result = split(tmp_path, rows, strategy=strategy, seed=seed)

    ok = {row["sample_id"] for row in rows if row["status"] == catalog.OK}
    assert {row["sample_id"] for row in result} == {row["sample_id"] for row in rows}
    assert {row["sample_id"] for row in result if row["split"] in SPLITS} == ok
    assert all(row["split"] is None for row in result if row["sample_id"] not in ok)
    assert report.samples == sum(report.counts.values()) == len(ok)

    good = [row for row in result if row["status"] == catalog.OK]
    for one in good:
        for other in good:
            if (one["phash"] ^ other["phash"]).bit_count() <= 4:
                assert one["split"] == other["split"]
                if one is not other:
                    assert one["split_cluster"] == other["split_cluster"] is not None
    if strategy == "group":
        per_group = defaultdict(set)
        for row in good:
            per_group[row["split_group"]].add(row["split"])
        assert all(len(splits) == 1 for splits in per_group.values())
    if strategy == "stratified":
        labels = {row["label"] for row in good}
        assert {row["label"] for row in good if row["split"] == "train"} == labels


@TIDY
@given(
    count=st.integers(10, 200),
    fractions=st.sampled_from([(0.8, 0.1, 0.1), (0.5, 0.5, 0.0), (1, 0, 0), (0.34, 0.33, 0.33)]),
    strategy=st.sampled_from(["random", "stratified"]),
)
def test_without_clusters_sizes_are_within_one_sample_of_the_fractions(
    tmp_path, count, fractions, strategy
):
    rows = [synthetic.row(number, label="only") for number in range(count)]
    report, _ = split(tmp_path, rows, strategy=strategy, fractions=fractions)
    for name, fraction in zip(SPLITS, fractions, strict=True):
        assert abs(report.counts[name] - fraction * count) <= 1
        assert fraction == 0 or report.counts[name] > 0
    assert report.warnings == []


def test_stratified_keeps_class_shares():
    sizes = {"a": 1000, "b": 301, "c": 40, "d": 7}
    for label, quota in quotas_by_class(sizes, (0.8, 0.1, 0.1)).items():
        wanted = [share * sizes[label] for share in (0.8, 0.1, 0.1)]
        assert all(abs(got - want) < 1 for got, want in zip(quota, wanted, strict=True))
        assert sum(quota) == sizes[label]


def test_many_small_classes_still_fill_every_side(tmp_path):
    rows = [synthetic.row(number, label=f"c{number // 3}") for number in range(300)]
    report, _ = split(tmp_path, rows, strategy="stratified")
    assert report.counts == {"train": 240, "val": 30, "test": 30}
    assert all(counts["train"] >= 1 for counts in report.classes.values())


def test_group_balances_samples_and_keeps_a_custom_column_together(tmp_path):
    rng = random.Random(5)
    patients = [rng.randrange(40) for _ in range(400)]
    rows = [synthetic.row(n, patient=patient) for n, patient in enumerate(patients)]
    report, result = split(
        tmp_path, rows, extra={"patient": pa.int64()}, strategy="group", by="patient"
    )
    sides = defaultdict(set)
    for row in result:
        sides[row["patient"]].add(row["split"])
        assert row["split_group"] == str(row["patient"])
    assert all(len(found) == 1 for found in sides.values())
    assert abs(report.counts["train"] - 320) <= 8
    assert min(report.counts["val"], report.counts["test"]) >= 30
    assert report.groups == {"count": 40, "largest": max(Counter(patients).values()), "merged": 0}


def test_three_groups_fill_three_sides(tmp_path):
    rows = [synthetic.row(number, group=f"g{number % 3}") for number in range(30)]
    report, _ = split(tmp_path, rows, strategy="group")
    assert report.counts == {"train": 10, "val": 10, "test": 10}
    assert "fractions could not be met" in report.warnings[0]


def test_near_duplicates_bridge_groups(tmp_path):
    rows = [synthetic.row(number, group=f"g{number % 10}") for number in range(100)]
    rows[0]["phash"] = rows[1]["phash"] ^ 1
    report, result = split(tmp_path, rows, strategy="group")
    sides = {row["group"]: row["split"] for row in result}
    assert sides["g0"] == sides["g1"]
    assert report.groups["merged"] == 1


# --- reproducible --------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_same_rows_in_any_order_and_the_same_command_twice(tmp_path, strategy):
    rows = [synthetic.row(n, group=f"g{n % 17}", phash=n // 2) for n in range(120)]
    first, _ = split(tmp_path / "a", rows, strategy=strategy, near_duplicate_bits=0)
    shuffled = random.Random(1).sample(rows, len(rows))
    second, _ = split(tmp_path / "b", shuffled, strategy=strategy, near_duplicate_bits=0)
    again, _ = split(tmp_path / "a", rows, strategy=strategy, near_duplicate_bits=0)
    assert first.catalog_id == second.catalog_id
    assert again == first
    assert len(list((tmp_path / "a/photos/catalog").iterdir())) == 2  # ingest's and ours


def test_the_seed_decides_and_the_first_catalog_stays_as_it_was(tmp_path):
    rows = [synthetic.row(number) for number in range(100)]
    one, first = split(tmp_path, rows, seed=1)
    two, second = split(tmp_path, rows, seed=2)
    assert one.catalog_id != two.catalog_id
    assert sides_of(first) != sides_of(second)
    assert one.counts == two.counts


def test_golden_assignment(tmp_path):
    """Changing this moves samples between sides in every user's dataset."""
    rows = [synthetic.row(number) for number in range(20)]
    _, result = split(tmp_path, rows, strategy="random", seed=17)
    sides = sides_of(result)
    order = [sides[synthetic.row(number)["sample_id"]] for number in range(20)]
    assert [number for number, side in enumerate(order) if side == "val"] == [0, 13]
    assert [number for number, side in enumerate(order) if side == "test"] == [9, 17]


# --- bad input -----------------------------------------------------------------------------------


def test_a_class_too_small_to_divide_goes_to_train_by_name(tmp_path):
    rows = [synthetic.row(number, label="common") for number in range(30)]
    rows += [synthetic.row(100, label="single"), synthetic.row(101, label="pair")]
    rows += [synthetic.row(102, label="pair")]
    report, result = split(tmp_path, rows)
    assert report.rare_classes == ["pair", "single"]
    assert {row["split"] for row in result if row["label"] in ("single", "pair")} == {"train"}
    assert "all in train: pair, single" in report.warnings[0]


def test_a_class_that_is_one_cluster_goes_to_train(tmp_path):
    rows = [synthetic.row(number, label="common") for number in range(30)]
    rows += [synthetic.row(100 + number, label="burst", phash=7) for number in range(10)]
    report, _ = split(tmp_path, rows)
    assert report.classes["burst"] == {"train": 10, "val": 0, "test": 0}
    assert report.rare_classes == ["burst"]
    assert report.clusters == {"count": 1, "largest": 10, "samples": 10}


def test_clusters_that_swallow_the_fractions_are_reported(tmp_path):
    rows = [synthetic.row(n, **({"phash": 1} if n < 60 else {})) for n in range(100)]
    report, _ = split(tmp_path, rows, strategy="random", fractions=[0.4, 0.3, 0.3])
    assert report.counts["train"] == 60
    assert "fractions could not be met" in report.warnings[0]
    assert "largest of 60" in report.warnings[0]


def test_identical_files_with_two_labels_are_quarantined_by_name(tmp_path):
    rows = [synthetic.row(number) for number in range(30)]
    rows.append({**rows[4], "uri": "/photos/copy.jpg", "label": "other"})
    rows.append({**rows[5], "uri": "/photos/copy2.jpg"})  # the same label: merely a copy
    report, result = split(tmp_path, rows)
    bad = [row for row in result if row["status"] == catalog.QUARANTINED]
    assert report.conflicts == [rows[4]["sample_id"]]
    assert report.samples == 29
    assert report.duplicates == 1
    assert {row["error"] for row in bad} == {
        "conflicting labels: identical files are labelled 'class1', 'other'"
    }
    assert [row["split"] for row in bad] == [None, None]


def test_a_group_column_that_random_ignores_is_mentioned(tmp_path):
    report, result = split(
        tmp_path, [synthetic.row(n, group=f"g{n}") for n in range(20)], strategy="random"
    )
    assert "`group` column holds 20 values" in report.warnings[0]
    assert {row["split_group"] for row in result} == {None}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strategy": "stratify"}, "nearest is 'stratified'"),
        ({"fractions": [0.8, 0.1]}, "expected three shares"),
        ({"fractions": [0.8, 0.1, 0.2]}, "sum to 1"),
        ({"fractions": [1.1, -0.1, 0]}, "none negative"),
        ({"fractions": [0, 0.5, 0.5]}, "train above 0"),
        ({"fractions": [float("nan"), 0.5, 0.5]}, "expected three shares"),
        ({"near_duplicate_bits": 40}, "split.near_duplicate_bits=40"),
        ({"by": "group"}, "set split.strategy=group"),
        ({"strategy": "group", "by": "grup"}, "nearest is 'group'"),
        ({"strategy": "group"}, "'group' is empty in 5 of 5 ok rows (first: /photos/0"),
        ({"strategy": "group"}, "; set ingest.group to a regular expression"),
    ],
)
def test_options_that_cannot_be_met(tmp_path, options, message):
    with pytest.raises(run.SplitError) as error:
        split(tmp_path, [synthetic.row(number) for number in range(5)], **options)
    assert message in str(error.value)


def test_no_ok_rows_and_no_label(tmp_path):
    bad = [synthetic.row(n, status=catalog.QUARANTINED) for n in range(3)]
    with pytest.raises(run.SplitError, match="none of 3 rows is ok"):
        split(tmp_path, bad)
    unlabelled = [synthetic.row(n, label=None) for n in range(10)]
    with pytest.raises(run.SplitError, match=r"10 of 10 ok rows have no label.*strategy=random"):
        split(tmp_path, unlabelled)
    report, _ = split(tmp_path, unlabelled, strategy="random")
    assert report.counts == {"train": 8, "val": 1, "test": 1}


def test_a_root_that_cannot_be_written(tmp_path):
    url = synthetic.write(tmp_path, [synthetic.row(number) for number in range(5)])
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match="cannot be written"):
        run.split(url, root=str(tmp_path / "file/store"), name="photos")


def test_by_hand(tmp_path, capsys):
    url = synthetic.write(tmp_path, [synthetic.row(number) for number in range(30)])
    words = ["--catalog", url, "--root", str(tmp_path), "--name", "photos"]
    assert command.main([*words, "--report", str(tmp_path / "split.json")]) == 0
    assert run.SplitReport.read(tmp_path / "split.json").counts["train"] == 24
    assert '"strategy": "stratified"' in capsys.readouterr().out
    assert command.main([*words, "--fractions", "1,1,1"]) == 1
    assert "split.fractions" in capsys.readouterr().err


def test_the_step_refuses_what_cannot_be_evaluated_later(tmp_path):
    url = synthetic.write(tmp_path, [synthetic.row(number) for number in range(5)])
    (tmp_path / "catalog.json").write_text(json.dumps({"catalog_url": url}))
    config = {
        "data": {"name": "photos"},
        "store": {"root": str(tmp_path)},
        "split": {"fractions": [0.7, 0.3, 0]},
        "until": None,
    }
    seen = SimpleNamespace(path=str(tmp_path / "catalog.json"))
    with pytest.raises(ValueError, match="no test sample among 5"):
        component.python_func(config=json.dumps(config), catalog=seen, split=None)
