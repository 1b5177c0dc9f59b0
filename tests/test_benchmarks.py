"""The benchmarks: every case reads the same bytes, and the runner makes a page of them."""

from __future__ import annotations

import dataclasses
import re
import tarfile
import zlib
from pathlib import Path

import pytest

from benchmarks import __main__ as command
from benchmarks import data, remote, report, runner, scale
from benchmarks.cases import DECODE, HTTP, RAW, THEMES, Case, Theme
from benchmarks.measure import Run
from tests.servers.fixtures import WebServers

IMAGES = 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bench-data")


@pytest.fixture(scope="module")
def made(folder: Path) -> data.DataSet:
    return data.make(folder, IMAGES)


def of(theme: Theme, *names: str) -> list[runner.Case]:
    return [case for case in theme.cases if case.name in names]


def run(**changes: float) -> Run:
    plain = Run(
        samples=100, bytes=1000, seconds=1.0, cpu_s=0.5, peak_bytes=1 << 20, labels=0, crc=0,
        grey=0.0, epochs=1,
    )  # fmt: skip
    return dataclasses.replace(plain, **changes)


def test_the_set_is_what_its_manifest_says(made: data.DataSet, folder: Path) -> None:
    crc = size = labels = 0
    for path in made.shards:
        with tarfile.open(path) as tar:
            for member in tar:
                file = tar.extractfile(member)
                assert file is not None
                held = file.read()
                if member.name.endswith(".jpg"):
                    crc, size = crc + zlib.crc32(held), size + len(held)
                else:
                    labels += int(held)
    assert (size, crc, labels) == (made.bytes, made.crc, made.labels)
    assert sum(zlib.crc32(Path(path).read_bytes()) for path in made.files) == crc
    assert data.make(folder, IMAGES) == made


def test_a_picture_depends_on_its_number_alone() -> None:
    assert data.picture(5) == data.picture(5)
    assert data.picture(5) != data.picture(15)


def test_every_bar_names_cases_of_its_theme() -> None:
    for theme in THEMES:
        names = [case.name for case in theme.cases]
        assert len(names) == len(set(names))
        assert theme.ours in names
        assert {name for bar in theme.bars for name in (bar.ours, bar.peer)} <= set(names)


def test_the_loader_and_the_ceiling_read_the_same_bytes(made: data.DataSet) -> None:
    runner.prove(RAW, of(RAW, "tarpon", "pread"), made)


def test_a_case_that_reads_other_bytes_is_refused(made: data.DataSet) -> None:
    other = dataclasses.replace(made, crc=made.crc + 1)
    with pytest.raises(runner.PeerError, match=r"raw/tarpon: .* does not read the same bytes"):
        runner.prove(RAW, of(RAW, "tarpon"), other)


def test_a_case_that_fails_says_why(made: data.DataSet) -> None:
    gone = dataclasses.replace(made, root=f"{made.root}-gone")
    with pytest.raises(runner.PeerError, match=r"(?s)tarpon: ended with 1.*shards"):
        runner.run_case(of(RAW, "tarpon")[0], gone, seconds=0, look="check")


def test_a_peer_that_is_not_there_is_reported(made: data.DataSet) -> None:
    ours, gone = RAW.cases[0], Case(name="gone", what="a peer", peer="gone", settings={})
    theme = dataclasses.replace(RAW, cases=(ours, gone))
    result = runner.run_theme(theme, made, runs=1, seconds=0)
    assert list(result.runs) == ["tarpon"]
    page = report.markdown([result], runs=1, load=(0.1, 0.2), plot="rates.svg")
    reason = "No module named 'benchmarks.peers.gone'"
    assert f"| `gone`: a peer | not installed ({reason}); make setup |" in page


def test_a_bar_beside_a_peer_that_is_not_there_is_not_measured(made: data.DataSet) -> None:
    absent = {"dali-reader": "no DALI"}
    result = runner.Result(theme=RAW, data=made, runs={"tarpon": [run()]}, absent=absent)
    page = report.markdown([result], runs=1, load=(0.1, 0.2), plot="rates.svg")
    assert "| `tarpon` / `dali-reader` | not installed | >= 1.1 | **not measured** |" in page


@pytest.mark.slow
@pytest.mark.parametrize("name", ["streaming", "litdata"])
def test_a_peer_reads_the_same_bytes_in_its_own_format(made: data.DataSet, name: str) -> None:
    absent = runner.prove(RAW, of(RAW, name), made)
    if absent:
        pytest.skip(f"{absent[name]}; scripts/install_peers.sh")


@pytest.fixture
def served(made: data.DataSet, web_server: WebServers) -> data.DataSet:
    return dataclasses.replace(made, url=web_server(Path(made.root)).url)


def test_over_http_the_loader_and_the_ceiling_read_the_same_bytes(served: data.DataSet) -> None:
    cases = of(HTTP, "tarpon", "tarpon-shuffled", "curl-multi")
    assert len(cases) == 3
    runner.prove(HTTP, cases, served)
    other = dataclasses.replace(served, crc=served.crc + 1)
    with pytest.raises(runner.PeerError, match=r"http/curl-multi: .* does not read the same bytes"):
        runner.prove(HTTP, of(HTTP, "curl-multi"), other)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["boto3", "webdataset-2", "s3torch-range", "obstore-ranges", "obstore-stream"]
)
def test_a_peer_reads_the_same_bytes_over_http(served: data.DataSet, name: str) -> None:
    absent = runner.prove(HTTP, of(HTTP, name), served)
    if absent:
        pytest.skip(f"{absent[name]}; scripts/install_peers.sh")


def test_the_ceiling_over_http_fails_where_a_shard_is_not_there(served: data.DataSet) -> None:
    gone = dataclasses.replace(served, url=f"{served.url}/gone")
    with pytest.raises(runner.PeerError, match=r"(?s)curl-multi: ended with 1.*own shards failed"):
        runner.run_case(of(HTTP, "curl-multi")[0], gone, seconds=0, look="check")


def test_a_bar_is_void_where_the_network_was_not_used(made: data.DataSet) -> None:
    def page(network_bytes: int) -> str:
        ours = run(samples=300, network_bytes=network_bytes)  # of 1,000 handed over
        runs = {"tarpon": [ours], "curl-multi": [run()], "boto3": [run(cpu_s=0.3)]}
        result = runner.Result(theme=HTTP, data=made, runs=runs)
        return report.markdown([result], runs=1, load=(0.1, 0.2), plot=None)

    assert "| `tarpon` / `curl-multi` | 3.00 (3.00 to 3.00) | >= 0.9 | reached |" in page(1000)
    assert "| `tarpon` / `curl-multi` | 3.00 (3.00 to 3.00) | >= 0.9 | **void**:" in page(999)
    assert "Bytes from the network per byte of JPEG: `tarpon` 1.00" in page(1000)
    # per CPU second: 300 / 0.5 to 100 / 0.3
    per_cpu = "| `tarpon` / `boto3` | 1.80 (1.80 to 1.80) | >= 1.25 per CPU second | reached |"
    assert per_cpu in page(1000)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["simplejpeg-scaled", "torch-files-draft"])
def test_a_peer_decodes_the_same_pictures(made: data.DataSet, name: str) -> None:
    absent = runner.prove(DECODE, of(DECODE, "tarpon", name), made)
    if absent:
        pytest.skip(f"{absent[name]}; scripts/install_peers.sh")


def test_ratios_are_taken_within_a_round(made: data.DataSet) -> None:
    # the machine was ten times slower in the second round: the ratio was 2 all the same
    runs = {
        "tarpon": [run(samples=200), run(samples=20), run(samples=220)],
        "pread": [run(samples=100), run(samples=10), run(samples=110)],
    }
    result = runner.Result(theme=RAW, data=made, runs=runs)
    assert result.ratio("tarpon", "pread") == runner.Spread(median=2, low=2, high=2)
    assert result.rate("pread") == runner.Spread(median=100, low=10, high=110)


def test_a_missed_bar_is_called_missed(made: data.DataSet) -> None:
    runs = {"tarpon": [run(samples=84)], "pread": [run(samples=100)]}
    result = runner.Result(theme=RAW, data=made, runs=runs)
    page = report.markdown([result], runs=1, load=(0.1, 0.2), plot="rates.svg")
    assert "| `tarpon` / `pread` | 0.84 (0.84 to 0.84) | >= 0.85 | **missed** |" in page
    assert "webdataset`:" not in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--runs", "0"], "--runs 0, expected at least 1"),
        (["--only", "nobody"], "--only nobody: no such case"),
        (["--images", "0"], "--images 0, expected at least 1"),
    ],
)
def test_bad_arguments_are_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        command.main(arguments)
    assert message in capsys.readouterr().err


SMALL = scale.Size(shards=20, per_shard=50, dali_shards=2)


def test_scale_opens_and_restores(folder: Path) -> None:
    result = scale.run(folder, SMALL, runs=2, only="re")  # restore
    found = result.values["restore"]
    assert [len(values) for values in found.values()] == [2, 2, 2, 2]
    assert max(found["restore_s"]) <= max(found["first_s"])
    page = "\n".join(scale.lines(result))
    assert "## 1,000 samples in 20 shards" in page
    assert re.search(r"\| state as JSON \| \d+ B \| \d+ B \| < 1,000 B \| reached \|", page)
    names = {path.name for path in scale.make(folder, SMALL).parent.iterdir()}
    assert len(names) == 2 * 20 + 1


def test_scale_refuses_other_samples(folder: Path) -> None:
    other = dataclasses.replace(SMALL, per_shard=51)
    scale.make(folder, SMALL).parent.rename(folder / "scale-20x51-recipe1")
    with pytest.raises(runner.PeerError, match=r"(?s)scale/open: .*samples: 1000, expected 1020"):
        scale.run(folder, other, runs=1, only="open")


def test_a_scale_bar_must_hold_in_the_worst_process() -> None:
    values = {"open": {"open_s": [0.5, 0.6, 2.5], "peak_bytes": [1e6, 2e6, 3e6]}}
    result = scale.ScaleResult(size=scale.FULL, values=values, absent={"dali": "no DALI"})
    page = "\n".join(scale.lines(result))
    assert "| time | 0.6 s | 2.5 s | < 2 s | **missed** |" in page
    assert "| peak memory of the process | 2 MB | 3 MB |  |  |" in page
    assert "| not installed (no DALI); make setup |" in page


def test_first_batch_and_epochs_over_http(served: data.DataSet) -> None:
    result = remote.run(served, quick=True, runs=2)
    assert len(result.first_s) == len(result.http_s) == 2
    # the list, an index and a range of a tar, one after the other, each 50 ms late
    assert min(result.first_s) > 0.15
    assert min(result.network) >= 1
    page = "\n".join(remote.lines(result))
    assert "| `first-batch`: cold, from a train.json of 20 shards, 50 ms added" in page


def test_a_first_batch_of_other_samples_is_refused(served: data.DataSet) -> None:
    other = dataclasses.replace(served, samples=IMAGES - 1)
    with pytest.raises(runner.PeerError, match=r"(?s)first-batch: ended with 1.*labels"):
        remote.run(other, quick=True, runs=1, only="first")


def test_the_bars_over_http(made: data.DataSet) -> None:
    result = remote.RemoteResult(
        data=made, shards=1000, first_s=[0.4, 0.5, 0.7], requests=[9, 9, 9],
        local_s=[10, 20, 10], http_s=[10.4, 20.6, 12], step_s=[1, 1, 1], network=[1, 1, 1],
    )  # fmt: skip
    page = "\n".join(remote.lines(result))
    assert "500 (400 to 700) ms | < 600 ms in the worst process | **missed** |" in page
    assert "| HTTP / local | 1.04 (1.03 to 1.2) | <= 1.05 | reached |" in page


def measure(folder: Path, output: Path, *arguments: str) -> str:
    fixed = ["--quick", "--runs", "1", "--images", str(IMAGES), "--data", str(folder)]
    assert command.main([*fixed, "--output", str(output), *arguments]) == 0
    return output.read_text(encoding="utf-8")


def test_the_command_writes_a_page_and_a_plot(
    made: data.DataSet, folder: Path, tmp_path: Path
) -> None:
    page = measure(folder, tmp_path / "page.md", "--theme", "raw", "--only", "pread-hot")
    assert re.search(r"\| `pread-hot`: ceiling: .* \| [\d,.]+ \([\d,.]+ to [\d,.]+\) \|", page)
    assert "![rates](page.svg)" in page
    assert 0 < (tmp_path / "page.svg").stat().st_size < 100_000


def test_scale_alone_makes_a_page_without_a_plot(folder: Path, tmp_path: Path) -> None:
    page = measure(folder, tmp_path / "page.md", "--theme", "scale", "--only", "open")
    assert "| `open`: tarpon.open(train.json) and its length | time |" in page
    assert "![rates]" not in page
    assert [path.name for path in tmp_path.iterdir()] == ["page.md"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_all_cases_of_all_themes_run(made: data.DataSet, folder: Path, tmp_path: Path) -> None:
    page = measure(folder, tmp_path / "page.md")
    for theme in THEMES:
        for case in theme.cases:
            row = f"| `{case.name}`: {case.what} |"
            assert row in page
            assert f"{row} not installed" not in page or case.install != "make setup"
        for bar in theme.bars:
            assert f"| `{bar.ours}` / `{bar.peer}` |" in page
    for name in remote.NAMES:
        assert f"| `{name}`: " in page
    for huge in scale.CASES:
        for figure in huge.figures:
            assert re.search(rf"\| `{huge.name}`: .* \| {re.escape(figure.what)} \|", page)
