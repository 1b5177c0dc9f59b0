"""Shard: the same catalog gives the same bytes, whatever dies on the way and however it is cut."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tarpon.fields import IMAGE_EXTENSIONS

from components import IMAGE, catalog, loading, manifest
from components.code import code_version
from components.ingest import run as ingest
from components.shard import __main__ as command
from components.shard import component, layout, run
from components.shard.index import Entry, parse, render
from components.shard.layout import RECORD, _cut
from components.split import component as split_component
from components.split import run as splitting
from components.store import StoreError
from tests.components import synthetic, versions

CLONE = Path(__file__).resolve().parents[2]


# --- what is written -----------------------------------------------------------------------------


def test_tars_are_plain_sorted_and_anonymous(tmp_path):
    report = versions.published(tmp_path)
    rows = {
        row["sample_id"]: row for row in catalog.read(versions.split_catalog(tmp_path)).to_pylist()
    }
    seen = set()
    for tar in sorted(Path(report.dataset_url).glob("*.tar")):
        assert tar.stat().st_size <= versions.MAX_BYTES
        assert tar.stat().st_size % RECORD == 0
        with tarfile.open(tar) as opened:
            members = opened.getmembers()
            names = [member.name for member in members]
            assert names == sorted(names)
            for member in members:
                assert (member.mtime, member.uid, member.gid) == (0, 0, 0)
                assert (member.uname, member.gname, member.mode) == ("tarpon", "tarpon", 0o444)
                assert member.pax_headers == {}
                key, ext = member.name.split(".")
                data = opened.extractfile(member).read()
                row = rows[key]
                assert tar.name.startswith(row["split"])
                if ext == "cls":
                    assert report.classes[int(data)] == row["label"]
                elif ext == "json":
                    meta = json.loads(data)
                    assert meta["sample_id"] == key
                    assert (meta["label"], meta["group"]) == (row["label"], row["group"])
                    assert int(meta["phash"], 16) == row["phash"]
                else:
                    assert ext == ("png" if row["format"] == "PNG" else "jpg")
                    assert data == Path(row["uri"]).read_bytes()
                    seen.add(key)
        assert tar.read_bytes()[257:263] == b"ustar\0"
    assert seen == set(rows)


def test_classes_mix_inside_a_tar(tmp_path):
    made = versions.plan(tmp_path, versions.split_catalog(tmp_path))
    run.pack(made.jobs[0])
    with tarfile.open(Path(made.dataset_url) / "train-000000.tar") as opened:
        classes = {opened.extractfile(m).read() for m in opened if m.name.endswith(".cls")}
    assert classes == {b"0", b"1", b"2"}


def test_manifest_says_what_was_made(tmp_path):
    report = versions.published(tmp_path)
    read = manifest.read(report.dataset_url)
    assert (read.name, read.version, read.parent) == ("photos", report.version, None)
    assert read.version.startswith("v")
    assert read.classes == ["class0", "class1", "class2"]
    assert sum(info.samples for info in read.splits.values()) == 60
    assert read.splits["train"].classes == {"class0": 16, "class1": 16, "class2": 16}
    assert read.config == {"data": {"name": "photos"}}
    assert read.code == code_version()
    rows = catalog.read(read.catalog["url"]).to_pylist()
    lines = [(row["split"], row["sample_id"], row["label"]) for row in rows]
    assert read.digest == report.digest == manifest.digest(lines)
    for split, info in read.splits.items():
        shards = manifest.read_shard_list(report.dataset_url, split)
        assert [shard.url for shard in shards] == [
            f"{split}-{number:06d}.tar" for number in range(info.shards)
        ]
        assert sum(shard.filesize for shard in shards) == info.bytes


def test_partitions_do_not_change_a_byte(tmp_path):
    url = versions.split_catalog(tmp_path)
    one = versions.sealed(tmp_path, url, version="one", partitions=1)
    many = versions.sealed(tmp_path, url, version="many", partitions=64)
    left, right = (versions.snapshot(at) for at in (one, many))
    assert len(left) > 10
    assert {name: data for name, (data, _) in left.items() if name != ".parts/plan.json"} == {
        name: data for name, (data, _) in right.items() if name != ".parts/plan.json"
    }


def test_an_empty_split_has_an_empty_list(tmp_path):
    url = versions.sealed(tmp_path, versions.split_catalog(tmp_path, fractions=[0.9, 0, 0.1]))
    assert manifest.read_shard_list(url, "val") == []
    assert run.verify(url).ok


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(2048, 60_000), min_size=1, max_size=80),
    max_bytes=st.integers(RECORD, 200_000),
)
def test_cut_covers_the_line_and_fits(sizes, max_bytes):
    runs = _cut(sizes, max_bytes)
    assert [i for start, stop in runs for i in range(start, stop)] == list(range(len(sizes)))
    for start, stop in runs:
        assert (
            sum(sizes[start:stop]) + 1024 <= max_bytes
            or stop - start == 1
            or (sum(sizes[start:stop]) <= max(sizes))
        )


def test_cut_is_even():
    runs = _cut([1000] * 100, 40 * 1024)
    assert [stop - start for start, stop in runs] == [33, 34, 33]


def test_index_round_trip_and_names_it_cannot_hold():
    samples = [[Entry("cls", 512, 1, "a.cls"), Entry("jpg", 1536, 7, "a.jpg")]]
    assert render(samples) == b"v1.2 1\ncls 512 1 a.cls jpg 1536 7 a.jpg\n"
    assert parse(render(samples), where="a.idx") == samples
    with pytest.raises(ValueError, match="white space"):
        render([[Entry("cls", 512, 1, "a b.cls")]])
    for text in ("", "v1.1 0\n", "v1.2 2\ncls 1 1 a.cls\n", "v1.2 1\ncls 1 a.cls\n"):
        with pytest.raises(ValueError, match="expected"):
            parse(text.encode(), where="a.idx")


@pytest.mark.parametrize("ext", sorted({*layout.EXTENSIONS.values()}))
def test_training_reads_every_extension_that_pack_writes(ext):
    assert ext in IMAGE_EXTENSIONS.split(";")
    assert loading.IMAGE_EXTENSIONS is IMAGE_EXTENSIONS


# --- again, and after a kill ---------------------------------------------------------------------


def test_twice_rewrites_nothing(tmp_path):
    first = versions.published(tmp_path)
    before = versions.snapshot(first.dataset_url)
    assert versions.published(tmp_path) == first
    assert versions.snapshot(first.dataset_url) == before
    made = versions.plan(tmp_path, versions.split_catalog(tmp_path))
    parts = [run.pack(job) for job in made.jobs]
    assert sum(part.written for part in parts) == 0
    assert sum(part.skipped for part in parts) == made.shards
    assert len(list((tmp_path / "store/photos").iterdir())) == 2  # one version, and the catalogs


def test_the_same_files_elsewhere_are_the_same_version(tmp_path):
    synthetic.photos(tmp_path / "here/class0", 12)
    synthetic.photos(tmp_path / "here/class1", 12, seed=1)
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    root, made = str(tmp_path / "store"), []
    for place in ("here", "there"):
        seen = ingest.ingest(str(tmp_path / place), root=root, name="photos", workers=1)
        halves = splitting.split(seen.catalog_url, root=root, name="photos")
        made.append(run.shard(halves.catalog_url, root=root, name="photos"))
        if place == "here":
            before = versions.snapshot(made[0].dataset_url)
    assert made[1] == made[0]
    assert versions.snapshot(made[0].dataset_url) == before


def test_the_version_follows_what_is_written(tmp_path):
    rows = [row | {"split": "train"} for row in synthetic.photos(tmp_path / "source", 4)]

    def version(**first):
        url = versions.catalog_as_split(tmp_path, [rows[0] | first, *rows[1:]])
        return versions.plan(tmp_path, url).version

    same = version()
    assert version(uri=rows[0]["uri"] + "2", source="/elsewhere") == same
    changes = [{"split": "val"}, {"label": "other"}, {"group": "g"}, {"phash": 1}]
    assert len({same, *(version(**change) for change in changes)}) == 5


def test_a_damaged_manifest_is_written_anew(tmp_path):
    report = versions.published(tmp_path)
    path = Path(report.dataset_url) / "dataset.json"
    whole = path.read_bytes()
    for damage in (b"", whole[:100], b"[]", b'{"name": "photos"}', b"\xff"):
        path.write_bytes(damage)
        with pytest.raises(manifest.ManifestError, match="shard step"):
            manifest.read(report.dataset_url)
        assert versions.published(tmp_path) == report
        assert path.read_bytes() == whole


def test_a_damaged_manifest_lets_no_other_content_in(tmp_path):
    report = versions.published(tmp_path, version="v1")
    (Path(report.dataset_url) / "dataset.json").write_bytes(b"")
    before = versions.snapshot(report.dataset_url)
    with pytest.raises(run.ShardError, match=r"already published .* choose another data.version"):
        versions.plan(tmp_path, versions.split_catalog(tmp_path, seed=99), version="v1")
    assert versions.snapshot(report.dataset_url) == before


KILLED = """
import os, signal, sys
from components import store, store_local
from components.shard import pack

job, point = sys.argv[1], int(sys.argv[2])
seen = 0

def dying(function):
    def wrapped(*words, **options):
        global seen
        seen += 1
        if seen == point:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*words, **options)
    return wrapped

pack._source_bytes = dying(pack._source_bytes)
store_local._sync_folder = dying(store_local._sync_folder)
store.Store.write_bytes = dying(store.Store.write_bytes)
for _ in iter(lambda: os.fork(), 0):  # one import for all kill points
    _, status = os.wait()
    if not os.WIFSIGNALED(status):
        sys.exit(os.waitstatus_to_exitcode(status) or seen)
    point += int(sys.argv[3])
    if point > int(sys.argv[4]):
        sys.exit(0)
pack.pack(job)
"""


def test_killed_at_any_instant_then_run_again_gives_the_same_bytes(tmp_path):
    """Each child packs until its n-th read, write or rename, dies there, and the next goes on."""
    rows = synthetic.photos(tmp_path / "source", 24)
    url = versions.catalog_as_split(tmp_path, [row | {"split": "train"} for row in rows])
    whole = versions.sealed(tmp_path, url, version="whole")
    torn = versions.plan(tmp_path, url, version="torn", partitions=1)

    environment = os.environ | {"PYTHONPATH": str(CLONE), "PYTHONWARNINGS": "ignore"}
    script = [sys.executable, "-c", KILLED, torn.jobs[0], "1", "3", "31"]
    done = subprocess.run(script, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    left = versions.snapshot(torn.dataset_url)
    assert any(name.startswith(".train-") for name in left), "nobody died while writing"
    assert not {"train.json", "dataset.json"} & left.keys()

    run.seal(torn.dataset_url, [run.pack(torn.jobs[0])])
    mine, theirs = (
        {name: data for name, (data, _) in versions.snapshot(at).items() if name[0] != "."}
        for at in (torn.dataset_url, whole)
    )
    assert mine == theirs
    assert run.verify(torn.dataset_url).ok


def test_a_tar_cut_short_is_packed_again(tmp_path):
    made = versions.plan(tmp_path, versions.split_catalog(tmp_path), partitions=1)
    run.pack(made.jobs[0])
    tar = Path(made.dataset_url) / "train-000001.tar"
    whole = tar.read_bytes()
    tar.write_bytes(whole[:5000])
    with pytest.raises(run.ShardError, match=r"1 of \d+ tars are missing or cut short .*000001"):
        run.seal(made.dataset_url)
    report = run.pack(made.jobs[0])
    assert report.written == 1
    assert tar.read_bytes() == whole


# --- bad input -----------------------------------------------------------------------------------


def test_a_source_that_changed_or_went_is_named(tmp_path):
    made = versions.plan(tmp_path, versions.split_catalog(tmp_path), partitions=1)
    photo = tmp_path / "source/0003.jpeg"
    original = photo.read_bytes()
    photo.write_bytes(original[:-1] + b"!")
    with pytest.raises(run.ShardError, match=r"0003\.jpeg: found .* changed since ingest"):
        run.pack(made.jobs[0])
    photo.unlink()
    with pytest.raises(run.ShardError, match=r"0003\.jpeg: source of sample .* cannot be read"):
        run.pack(made.jobs[0])
    assert not list(Path(made.dataset_url).glob(".*.tmp")), "an error leaves nothing half-written"
    photo.write_bytes(original)
    run.seal(made.dataset_url, [run.pack(made.jobs[0])])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"version": "a b"}, "data.version='a b'"),
        ({"version": "../up"}, "data.version='../up'"),
        ({"version": "catalog"}, "another name than catalog or checkpoints"),
        ({"version": "checkpoints"}, "another name than catalog or checkpoints"),
        ({"version": "ü"}, "expected ASCII letters"),
        ({"max_bytes": 100}, "shard.max_bytes=100: expected at least 10240"),
        ({"partitions": 0}, "shard.partitions=0"),
    ],
)
def test_options_that_cannot_be_met(tmp_path, options, message):
    with pytest.raises(run.ShardError) as error:
        versions.plan(tmp_path, versions.split_catalog(tmp_path), **options)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "has split None, expected one of train, val, test; run the split step"),
        ({"split": "train", "label": None}, "has no label"),
        ({"split": "train", "format": "HEIF"}, "is of format 'HEIF'"),
        ({"status": catalog.QUARANTINED}, "none of 2 rows is ok"),
    ],
)
def test_catalogs_that_cannot_be_packed(tmp_path, values, message):
    rows = [synthetic.row(number) | values for number in range(2)]
    with pytest.raises(run.ShardError) as error:
        versions.plan(tmp_path, versions.catalog_as_split(tmp_path, rows))
    assert message in str(error.value)


def test_identical_files_are_one_sample_unless_they_disagree(tmp_path):
    rows = [row | {"split": "train"} for row in synthetic.photos(tmp_path / "source", 3)]
    twin = rows[0] | {"uri": rows[0]["uri"] + "2"}
    made = versions.plan(tmp_path, versions.catalog_as_split(tmp_path, [*rows, twin]))
    assert made.samples == 3
    torn = twin | {"split": "test"}
    with pytest.raises(run.ShardError, match="expected one split and one label"):
        versions.plan(tmp_path, versions.catalog_as_split(tmp_path, [*rows, torn]))


def test_a_published_version_never_changes(tmp_path):
    report = versions.published(tmp_path, version="v1")
    before = versions.snapshot(report.dataset_url)
    other = versions.split_catalog(tmp_path, seed=99)
    with pytest.raises(run.ShardError, match=r"already published .* choose another data.version"):
        versions.plan(tmp_path, other, version="v1")
    same = versions.split_catalog(tmp_path)
    with pytest.raises(run.ShardError, match="and other tars"):
        versions.plan(tmp_path, same, version="v1", max_bytes=2 * versions.MAX_BYTES)
    assert versions.snapshot(report.dataset_url) == before


def test_tars_of_another_plan_are_refused(tmp_path):
    url = versions.split_catalog(tmp_path)
    versions.sealed(tmp_path, url, version="v1")
    with pytest.raises(run.ShardError, match="files of another plan"):
        versions.sealed(tmp_path, url, version="v1", max_bytes=2**20)


def test_receipts_of_an_abandoned_plan_are_not_believed(tmp_path):
    versions.sealed(tmp_path, versions.split_catalog(tmp_path, seed=1), version="v1")
    again = versions.split_catalog(tmp_path, seed=2)
    url = versions.sealed(tmp_path, again, version="v1")
    assert run.verify(url).ok
    assert run.publish(url, config={}).digest == versions.plan(tmp_path, again).digest


def test_parts_that_do_not_cover_the_plan(tmp_path):
    made = versions.plan(tmp_path, versions.split_catalog(tmp_path))
    parts = [run.pack(job) for job in made.jobs]
    with pytest.raises(run.ShardError, match="report other tars than the plan"):
        run.seal(made.dataset_url, parts[1:])
    with pytest.raises(run.ShardError, match=r"plan\.json: no plan"):
        run.seal(made.dataset_url + "x")


@pytest.mark.parametrize("job", ["", "[]", '{"partition": 1}'])
def test_a_job_that_is_none(job):
    with pytest.raises(run.ShardError, match=r"^job "):
        run.pack(job)


def test_a_root_that_cannot_be_written(tmp_path):
    url = versions.split_catalog(tmp_path)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match="cannot be written"):
        run.plan(url, root=str(tmp_path / "file"), name="photos")


# --- by hand and in a pipeline -------------------------------------------------------------------


def test_by_hand(tmp_path, capsys):
    words = ["--catalog", versions.split_catalog(tmp_path), "--root", str(tmp_path / "store")]
    assert command.main([*words, "--name", "photos", "--report", str(tmp_path / "r.json")]) == 0
    report = run.DatasetReport.read(tmp_path / "r.json")
    assert command.main(["--verify", report.dataset_url]) == 0
    assert command.main(["--verify", report.dataset_url + "x"]) == 1
    assert "no such shard list" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:You may be:RuntimeWarning")  # no image, on purpose
def test_components_run_as_a_graph(tmp_path, monkeypatch):
    """ParallelFor over the jobs and Collected reports, by KFP's local runner."""
    from kfp import compiler, dsl, local

    url = synthetic.write(tmp_path / "store", synthetic.photos(tmp_path / "source", 60))
    config = {
        "data": {"name": "photos", "version": None},
        "until": "shard",
        "store": {"root": str(tmp_path / "store")},
        "split": {"strategy": "stratified", "by": None, "fractions": [0.8, 0.1, 0.1], "seed": 17},
        "shard": {"max_bytes": versions.MAX_BYTES, "partitions": 3},
    }

    @dsl.component(base_image=IMAGE, install_kfp_package=False)
    def catalogued(catalog_url: str, catalog: dsl.Output[dsl.Dataset]):
        import json
        from pathlib import Path

        Path(catalog.path).parent.mkdir(parents=True, exist_ok=True)
        Path(catalog.path).write_text(json.dumps({"catalog_url": catalog_url}))

    @dsl.pipeline(name="shard-steps")
    def graph(config: str, catalog_url: str) -> str:
        found = catalogued(catalog_url=catalog_url)
        halves = split_component.split(config=config, catalog=found.outputs["catalog"])
        planned = component.plan(config=config, split=halves.outputs["split"])
        with dsl.ParallelFor(items=planned.outputs["Output"]) as job:
            packed = component.pack(job=job)
        sealed = component.seal(
            config=config,
            plan=planned.outputs["plan"],
            parts=dsl.Collected(packed.outputs["part"]),
        )
        return sealed.outputs["Output"]

    compiler.Compiler().compile(graph, str(tmp_path / "graph.yaml"))
    assert "pip install" not in (tmp_path / "graph.yaml").read_text()
    monkeypatch.setenv("PYTHONPATH", str(CLONE))
    monkeypatch.chdir(tmp_path)
    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(tmp_path / "artifacts"))
    done = graph(config=json.dumps(config), catalog_url=url)
    read = manifest.read(done.outputs["Output"])
    assert sum(info.samples for info in read.splits.values()) == 60
    assert read.config == config
