"""Reports: JSON in and out, and progress that passes items through."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from components.progress import track
from components.report import Report, ReportError


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample(Report):
    url: str
    ok: int
    counts: dict[str, int]
    names: list[str] = field(default_factory=list)


SAMPLE = Sample(url="/x", ok=3, counts={"a": 1, "b": 2}, names=["é"])


def test_a_report_reads_back_equal_and_writes_the_same_bytes(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "report.json"
    SAMPLE.write(path)
    first = path.read_bytes()
    assert Sample.read(path) == SAMPLE
    SAMPLE.write(path)
    assert path.read_bytes() == first
    assert [file.name for file in path.parent.iterdir()] == ["report.json"]
    assert json.loads(first)["ok"] == 3


def test_the_summary_is_flat() -> None:
    assert SAMPLE.summary() == {"url": "/x", "ok": 3, "counts.a": 1, "counts.b": 2}


def test_a_field_with_a_default_may_be_absent() -> None:
    assert Sample.from_json('{"url": "/x", "ok": 1, "counts": {}}').names == []


@pytest.mark.parametrize("text", ["", "[]", '{"url": "/x"}', '{"url": "", "ok": 1, "more": 2}'])
def test_other_json_is_refused_by_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "r.json"
    path.write_text(text)
    with pytest.raises(ReportError, match=r"r\.json: .*expected .*a Sample"):
        Sample.read(path)


def test_progress_passes_everything_and_says_when_done(capfd: pytest.CaptureFixture[str]) -> None:
    assert list(track(iter("abc"), 3, "letters")) == ["a", "b", "c"]
    shown = capfd.readouterr()
    assert shown.out == ""
    assert "letters: 3/3, done in" in shown.err
