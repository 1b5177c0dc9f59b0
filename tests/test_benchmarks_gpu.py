"""python -m benchmarks.gpu on CPU pipelines: it runs, and its cases make the same pictures."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import gpu

pytest.importorskip("nvidia.dali")


@pytest.mark.slow
def test_the_command_writes_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    told = ["--quick", "--runs", "1", "--images", "32", "--theme", gpu.PLANS, "--only", "r"]
    assert gpu.main([*told, "--data", str(tmp_path / "data"), "--output", str(page)]) == 0
    text = page.read_text(encoding="utf-8")
    assert capsys.readouterr().out.strip() == text.strip()
    for case in ("`random-crop`", "`roi`"):  # it ends where their grey levels differ
        assert case in text
    assert "no GPU was used" in text


def test_every_theme_has_its_bars() -> None:
    bars = {
        theme.name: [(bar.peer, bar.least) for bar in theme.bars]
        for theme in gpu.themes("gpu", 8, 1.0)
    }
    assert bars == {
        gpu.FEEDS: [("memory", 0.97), ("reader", 1.0)],
        gpu.PLANS: [],
        gpu.HTTP: [("webdataset", 2.0)],
        gpu.S3: [("reader", 2.0)],
    }
    assert gpu.themes("cpu", 2, 1.0)[0].bars[0].least == 0.95
