"""Profile: the page's numbers against counts made by hand, and a page that stands alone."""

from __future__ import annotations

import base64
import datetime
import html.parser
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from kfp import compiler
from PIL import Image

from components import catalog
from components.ingest import sample_photos
from components.ingest.run import ingest
from components.profile import __main__ as command
from components.profile import numbers
from components.profile.component import profile as profile_component
from components.profile.run import ProfileReport, profile
from components.store import Store, StoreError

FAR = [0x0, 0xFFFF, 0xFFFF0000, 0xFFFF00000000, 0xFFFF << 48, (1 << 64) - 1]
"""Hashes at least 16 bits apart."""


def row(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "sample_id": f"{number:064x}",
        "uri": f"/photos/c/{number}.jpg",
        "bytes": 1000 + number,
        "format": "JPEG",
        "width": 400 + number,
        "height": 300,
        "mode": "RGB",
        "label": "cat",
        "phash": FAR[number % len(FAR)],
        "status": catalog.OK,
        "source": "/photos",
        "ingested_at": datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC),
        **changes,
    }


def table(*rows: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=catalog.SCHEMA)


def compute(*rows: dict[str, Any], bits: int = 4) -> numbers.Numbers:
    return numbers.compute(table(*rows), near_bits=bits)


def quarantined(number: int, error: str, **changes: Any) -> dict[str, Any]:
    return row(number, status=catalog.QUARANTINED, error=error, **changes)


def test_classes_are_counted_among_usable_rows_only() -> None:
    found = compute(
        row(0),
        row(1),
        row(2),
        row(3, label="dog"),
        quarantined(4, "empty file: 0 bytes", phash=None),
    )
    assert found.classes == {"cat": 3, "dog": 1}
    assert found.imbalance == 3.0
    assert found.reasons == {"empty file": 1}
    assert "the largest class is 3.0 times the smallest" in found.warnings()


def test_a_lost_class_is_the_first_warning() -> None:
    found = compute(row(0), quarantined(1, "damaged: x", label="owl", phash=None))
    assert found.lost_classes == ["owl"]
    assert found.warnings()[0] == "class 'owl' is lost: every file of it is quarantined"


def test_near_duplicates_chain_into_clusters_and_pairs_are_counted() -> None:
    found = compute(
        row(0, phash=0b0),
        row(1, phash=0b1111),
        row(2, phash=0b11111111),  # 8 from the first, 4 from the second: one chain
        row(3, phash=0b1111),  # equal to the second
        row(4, phash=1 << 63 | 0b1111 << 40, label="dog"),
        row(5, phash=0xFFFF << 20),
        quarantined(6, "duplicate: x", phash=0b0),
    )
    assert [cluster.rows for cluster in found.near] == [[0, 1, 2, 3]]
    assert found.near_pairs == 1 + 2 * 2  # the equal pair, and both its members to each neighbour
    assert compute(row(0, phash=0), row(1, phash=0b11111)).near == []


def test_near_duplicates_across_classes_and_splits_are_warned_of() -> None:
    found = compute(row(0, phash=1, split="train"), row(1, phash=3, label="dog", split="test"))
    assert (found.near[0].labels, found.near[0].splits) == (["cat", "dog"], ["test", "train"])
    assert "1 clusters of near duplicates lie in more than one split" in found.warnings()
    assert "1 clusters of near duplicates mix classes" in found.warnings()


def test_exact_duplicates_are_found_among_all_decodable_rows() -> None:
    same = f"{9:064x}"
    empty = f"{8:064x}"
    found = compute(
        row(0),
        row(1, sample_id=same),
        quarantined(2, "duplicate: x", sample_id=same),
        quarantined(3, "empty file: 0 bytes", sample_id=empty, phash=None),
        quarantined(4, "empty file: 0 bytes", sample_id=empty, phash=None),
    )
    assert found.copies == [[1, 2]]


def test_label_skew_is_the_share_that_would_have_to_change() -> None:
    rows = [row(i, split="train", label="cat" if i < 6 else "dog") for i in range(12)]
    rows += [row(20 + i, split="test", label="cat") for i in range(4)]
    cross = compute(*rows).splits
    assert cross is not None
    assert cross.columns == ["train", "test"]
    assert cross.counts == {"cat": {"train": 6, "test": 4}, "dog": {"train": 6, "test": 0}}
    assert cross.skew == {"train": 0.125, "test": 0.375}
    warned = [text for text in compute(*rows).warnings() if "skewed" in text]
    assert [text.split("'")[1] for text in warned] == ["train", "test"]


def test_sources_are_compared_only_when_there_are_several() -> None:
    assert compute(row(0), row(1)).sources is None
    both = compute(row(0), row(1, source="/other", label="dog")).sources
    assert both is not None
    assert both.skew == {"/other": 0.5, "/photos": 0.5}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder to work in and the catalog URL of some sample photographs."""
    folder = tmp_path_factory.mktemp("profile")
    sample_photos.make(str(folder / "photos"), count=40)
    report = ingest(str(folder / "photos"), root=str(folder / "root"), name="photos")
    return folder, report.catalog_url


class Links(html.parser.HTMLParser):
    """Collects everything a page would load, and checks that tags are balanced."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = {"src", "href", "data", "action"}
        self.loads += [value or "" for name, value in attrs if name in names]
        if tag not in {"meta", "img", "link", "br"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_stands_alone_and_shows_every_class(photos: tuple[Path, str]) -> None:
    folder, url = photos
    report = profile(url, output=str(folder / "new" / "page.html"))
    text = Path(report.path).read_text()
    links = Links()
    links.feed(text)
    assert links.open == []
    outside = [
        link for link in links.loads if not link.startswith(("data:image/jpeg;base64,", "#"))
    ]
    assert outside == []
    assert not re.search(r"url\((?!['\"]?#)|@import|<script|<link", text)
    assert text.count("<svg") == 3
    for name in sample_photos.CLASSES:
        assert f"<b>{name}<br>" in text
    first = next(link for link in links.loads if link.startswith("data:"))
    assert base64.b64decode(first.partition(",")[2]).startswith(b"\xff\xd8\xff")
    for quarantined_name in ("broken-text.jpg", "misfiled.jpg", "not a picture"):
        assert quarantined_name in text


def test_the_report_holds_the_numbers(photos: tuple[Path, str]) -> None:
    folder, url = photos
    report = profile(url, output=str(folder / "page.html"))
    assert (report.rows, report.ok, report.quarantined) == (53, 41, 12)
    assert sum(report.classes.values()) == 41
    assert report.exact_duplicates == 5
    assert "2 files are quarantined because their classes contradict" in report.warnings
    report.write(folder / "report.json")
    assert ProfileReport.read(folder / "report.json") == report


def test_the_same_catalog_gives_the_same_bytes(photos: tuple[Path, str]) -> None:
    folder, url = photos
    pages = [Path(profile(url, output=str(folder / name)).path) for name in ("1.html", "2.html")]
    assert pages[0].read_bytes() == pages[1].read_bytes()


def test_names_are_escaped_and_vanished_files_shown_as_such(tmp_path: Path) -> None:
    store = Store(tmp_path)
    rows = [row(0, uri="/photos/<b>/a.jpg", label="<script>x</script>"), row(1)]
    ref = catalog.write(store, "d", table(*rows))
    text = Path(profile(ref.url, output=str(tmp_path / "p.html")).path).read_text()
    assert "<script>" not in text
    assert "&lt;script&gt;x" in text
    assert text.count("not readable") == 2


def test_a_split_catalog_gets_its_table(tmp_path: Path) -> None:
    Image.new("RGB", (50, 40), "red").save(tmp_path / "a.png")
    rows = [row(i, uri=str(tmp_path / "a.png"), split="val" if i else "train") for i in range(4)]
    ref = catalog.write(Store(tmp_path), "d", table(*rows))
    report = profile(ref.url, output=str(tmp_path / "p.html"))
    assert report.split_skew == {"train": 0.0, "val": 0.0}
    assert "Classes per split" in Path(report.path).read_text()


def test_a_catalog_of_nothing_usable_still_makes_a_page(tmp_path: Path) -> None:
    ref = catalog.write(Store(tmp_path), "d", table(quarantined(0, "empty file: x", phash=None)))
    report = profile(ref.url, output=str(tmp_path / "p.html"))
    assert (report.ok, report.imbalance, report.lost_classes) == (0, 0.0, ["cat"])


def test_bad_arguments_are_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no such object"):
        profile(str(tmp_path / "none.parquet"), output=str(tmp_path / "p.html"))
    ref = catalog.write(Store(tmp_path), "d", table(row(0)))
    with pytest.raises(StoreError, match="found a folder, expected the name of an HTML file"):
        profile(ref.url, output=str(tmp_path))
    with pytest.raises(ValueError, match="near_duplicate_bits"):
        profile(ref.url, output=str(tmp_path / "p.html"), near_duplicate_bits=40)
    narrow = tmp_path / "narrow.parquet"
    pq.write_table(table(row(0)).drop_columns(["phash"]), narrow)
    with pytest.raises(catalog.CatalogError, match=r"lacks the columns \['phash'\]"):
        profile(str(narrow), output=str(tmp_path / "p.html"))


def test_by_hand(
    tmp_path: Path, photos: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"
    assert command.main(["--catalog", photos[1], "--output", str(page)]) == 0
    assert ProfileReport.from_json(capsys.readouterr().out).path == str(page)
    assert command.main(["--catalog", photos[1], "--output", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith(f"profile: {tmp_path}: found a folder")


def test_the_component_reads_the_catalogs_url_from_the_artifact(
    tmp_path: Path, photos: tuple[Path, str]
) -> None:
    artifact = SimpleNamespace(path=str(tmp_path / "catalog.json"))
    Path(artifact.path).write_text(json.dumps({"catalog_url": photos[1], "other": 1}))

    class Page:
        uri = str(tmp_path / "page")
        metadata: dict[str, Any] = {}  # noqa: RUF012

        @property
        def path(self) -> str:
            return self.uri

    path = profile_component.python_func(config="{}", catalog=artifact, page=Page())
    assert path == str(tmp_path / "page.html")
    assert Path(path).read_text().startswith("<!DOCTYPE html>")


def test_the_component_compiles_without_pip(tmp_path: Path) -> None:
    path = tmp_path / "profile.yaml"
    compiler.Compiler().compile(profile_component, str(path))
    assert "pip install" not in path.read_text()
