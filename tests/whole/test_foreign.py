"""Files that others planted: special files, links, bombs; and a machine that lacks something."""

from __future__ import annotations

import errno
import gzip
import hashlib
import io
import os
import resource
import subprocess
import tarfile
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.archives import LIMITS, assert_refused
from helpers.disks import disk_of
from helpers.runs import RUNS, record
from helpers.webserver import Page, Server, serving

from mlbench.backbones.weights import read_state
from mlbench.comparison import cache as summary
from mlbench.errors import MlbenchError
from mlbench.metrics import embeddings
from mlbench.metrics.embeddings import read_embeddings
from mlbench.metrics.evaluation import evaluate_queries
from mlbench.models.index import open_index
from mlbench.recipes.reading import load_recipe
from mlbench.records import scores, store
from mlbench.report import write_report
from mlbench.report.data import embeddings_of
from mlbench.runs import tune
from mlbench.runs.claims import run_claim
from mlbench.runs.outcomes import _problem
from mlbench.system import archives, download, files, npz
from mlbench.system import files as paths
from mlbench.system.download import Pin, fetch, fetch_published
from mlbench.system.files import atomic_file
from mlbench.system.machine import MachineError, lack
from mlbench.system.pace import Pace
from mlbench.system.regular import IrregularFileError
from mlbench.training import checkpoint
from mlbench.training.checkpoint import Checkpoints

SPEC = RUNS[0]


def plant_pipe(path: Path) -> None:
    os.mkfifo(path)


def plant_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def plant_folder(path: Path) -> None:
    path.mkdir()


planted = pytest.mark.parametrize("plant", [plant_pipe, plant_device, plant_folder])
Plant = Callable[[Path], None]


def saved(out: Path) -> Path:
    results = evaluate_queries(np.random.default_rng(0).normal(size=(12, 3)), np.arange(12) % 3)
    return store.save(out, record(SPEC, 0.5), results)


class TestTemporaryFiles:
    def test_their_names_cannot_be_foreseen(self, tmp_path: Path) -> None:
        seen = set()
        for _ in range(3):
            with atomic_file(tmp_path / "a"):
                (name,) = (path.name for path in tmp_path.glob(".*.tmp"))
                seen.add(name)
        assert len(seen) == 3

    def test_one_that_is_there_is_not_opened(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        mine = tmp_path / "mine"
        mine.write_bytes(b"precious")
        monkeypatch.setattr(paths.secrets, "token_hex", lambda _: "0" * 16)
        with atomic_file(tmp_path / "a"):
            (name,) = tmp_path.glob(".*.tmp")
        name.symlink_to(mine)
        with pytest.raises(MlbenchError, match="File exists"), atomic_file(tmp_path / "a"):
            pass
        assert mine.read_bytes() == b"precious"

    def test_a_link_at_the_place_itself_is_replaced(self, tmp_path: Path) -> None:
        mine = tmp_path / "mine"
        mine.write_bytes(b"precious")
        (tmp_path / "a").symlink_to(mine)
        with atomic_file(tmp_path / "a") as file:
            file.write(b"new")
        assert mine.read_bytes() == b"precious"
        assert not (tmp_path / "a").is_symlink()

    def test_a_stale_folder_of_such_a_name_stops_nothing(self, tmp_path: Path) -> None:
        folder = tmp_path / f".a.{paths._machine()}-{2**22 + 1}-1.tmp"
        folder.mkdir()
        os.utime(folder, (0, 0))
        with atomic_file(tmp_path / "a"):
            pass
        assert {path.name for path in tmp_path.iterdir()} == {"a", folder.name}

    def test_names_of_the_longest_kind(self, tmp_path: Path) -> None:
        for name in ("x" * 255, "é" * 127):
            with atomic_file(tmp_path / name) as file:
                file.write(b"x")
            assert (tmp_path / name).read_bytes() == b"x"

    def test_machines_of_one_name_are_told_apart(self, monkeypatch: pytest.MonkeyPatch) -> None:
        here = paths._machine.__wrapped__()
        read = Path.read_text
        monkeypatch.setattr(
            Path,
            "read_text",
            lambda self, *a: "another" if self.name == "boot_id" else read(self, *a),
        )
        assert paths._machine.__wrapped__() != here

    def write(self, out: Path, folder: str) -> None:
        if folder == ".claims":
            with run_claim(out, SPEC):
                pass
        elif folder == ".checkpoints":
            Checkpoints(out, SPEC, "this").save({})
        else:
            saved(out)

    @pytest.mark.parametrize("folder", [".claims", ".checkpoints", "record"])
    def test_nothing_is_written_through_a_planted_folder_link(
        self, tmp_path: Path, folder: str
    ) -> None:
        out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
        place = store.record_path(out, SPEC).parent if folder == "record" else out / folder
        elsewhere.mkdir()
        out.mkdir()
        place.symlink_to(elsewhere)
        with pytest.raises(MlbenchError, match="is a link, and nothing is written through it"):
            self.write(out, folder)
        assert list(elsewhere.iterdir()) == []

    def test_the_claims_own_gitignore_is_not_written_through_a_link(self, tmp_path: Path) -> None:
        mine = tmp_path / "mine"
        (tmp_path / ".claims").mkdir()
        (tmp_path / ".claims" / ".gitignore").symlink_to(mine)
        with run_claim(tmp_path, SPEC) as held:
            assert held
        assert not mine.exists()


class TestChecksum:
    def test_nothing_may_follow_it(self, tmp_path: Path) -> None:
        path = saved(tmp_path)
        text = path.read_text()
        again = f', "checksum": "{0:064}"'
        for added in (',\n "seed": 99', ',\n "metrics": {}', ',\n "x": 1', again):
            path.write_text(text.replace('"\n}\n', f'"{added}\n}}\n'))
            with pytest.raises(MlbenchError):
                store.load(path)
        path.write_text(text + "{}")
        with pytest.raises(MlbenchError, match="not valid JSON"):
            store.load(path)

    def test_a_key_twice_is_refused_though_the_checksum_fits(self, tmp_path: Path) -> None:
        path = saved(tmp_path)
        content, _, _ = path.read_text().rpartition(',\n "checksum"')
        for old, new in (
            ('\n "seed": 0', '\n "seed": 1,\n "seed": 0'),
            ('"dim": ', '"dim": 1, "dim": '),
        ):
            assert old in content
            spoilt = content.replace(old, new, 1)
            digest = hashlib.sha256(f"{spoilt}\n}}\n".encode()).hexdigest()
            path.write_text(f'{spoilt},\n "checksum": "{digest}"\n}}\n')
            with pytest.raises(MlbenchError, match="occurs twice"):
                store.load(path)

    @pytest.mark.parametrize("value", ["NaN", "Infinity", "1" + "0" * 400, "1" * 5000, "[" * 9999])
    def test_numbers_that_are_none(self, tmp_path: Path, value: str) -> None:
        path = saved(tmp_path)
        path.write_text(
            path.read_text().replace(
                '"images_per_second": ', f'"images_per_second": {value}, "x": '
            )
        )
        with pytest.raises(MlbenchError):
            store.load(path)


class TestSpecialFiles:
    """Each of these would wait for ever, or read until memory ends."""

    @planted
    def test_records_and_what_lies_beside_them(self, tmp_path: Path, plant: Plant) -> None:
        path = saved(tmp_path)
        plant(path.with_name("x.json"))
        path.with_suffix(".npz").unlink()
        plant(path.with_suffix(".npz"))
        found = store.read_results(tmp_path)
        assert list(found.records) == [path]
        if plant is not plant_folder:
            assert "not a regular file" in found.problems[0]
        assert scores.read_scores(path) is None
        assert scores.query_neighbors(path) is None
        plant(path.with_suffix(".embeddings.npy"))
        assert embeddings_of(path, 12) is None

    @planted
    def test_the_cache(self, tmp_path: Path, plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MLBENCH_CACHE", str(tmp_path / "cache"))
        saved(tmp_path / "out")
        place = summary._place(tmp_path / "out", summary._Asked("other-classes", ()))
        assert place is not None
        plant(place)
        assert len(summary.summarise(tmp_path / "out").comparisons) == 1

    @planted
    def test_checkpoints_start_anew(self, tmp_path: Path, plant: Plant) -> None:
        kept = Checkpoints(tmp_path, SPEC, "this")
        slot = checkpoint._slots(tmp_path, SPEC)[0]
        slot.parent.mkdir()
        plant(slot)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert kept.load() is None
        checkpoint.remove(tmp_path, SPEC)

    @planted
    @pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
    def test_weights(self, tmp_path: Path, plant: Plant, suffix: str) -> None:
        plant(tmp_path / f"w{suffix}")
        with pytest.raises(MlbenchError):
            read_state(tmp_path / f"w{suffix}")

    @planted
    @pytest.mark.parametrize(
        ("name", "read"),
        [
            ("a.toml", lambda path: load_recipe(str(path))),
            ("a.npz", read_embeddings),
            ("a.index.npz", open_index),
            ("a.npy", npz.read_array),
            ("a.json", store.load),
            ("a.pth", lambda path: files.file_sha256(path)),
        ],
    )
    def test_what_a_user_names(
        self, tmp_path: Path, plant: Plant, name: str, read: Callable[[Path], object]
    ) -> None:
        plant(tmp_path / name)
        with pytest.raises(MlbenchError):
            read(tmp_path / name)

    @planted
    def test_the_store_of_trials(self, tmp_path: Path, plant: Plant) -> None:
        plant(tmp_path / "tune.sqlite3")
        with pytest.raises(IrregularFileError), tune._open_store(tmp_path):
            pass

    def test_files_of_more_than_the_limit(self, tmp_path: Path) -> None:
        with (tmp_path / "a.json").open("wb") as file:
            file.truncate(1 << 40)
        with pytest.raises(MlbenchError, match="the most that are read"):
            store.load(tmp_path / "a.json")


def test_folders_nested_1500_deep(tmp_path: Path) -> None:
    here = Path.cwd()
    try:
        os.chdir(tmp_path)
        for _ in range(1500):
            Path("d").mkdir()
            os.chdir("d")
        Path("a.json").write_text("{}")
    finally:
        os.chdir(here)
    saved(tmp_path / "z")
    found = store.read_results(tmp_path)
    subprocess.run(["rm", "-rf", tmp_path / "d"], check=True)  # too deep for pytest
    assert (len(found.records), len(found.problems)) == (1, 1)


class TestBombs:
    def test_query_scores_that_claim_two_gigabytes(self, tmp_path: Path) -> None:
        path = saved(tmp_path).with_suffix(".npz")
        np.savez_compressed(path, ks=np.zeros(1 << 16), hits=[0], ap_at_r=[0])
        assert len(npz.read_members(path, ("ks",))[0]) == (1 << 19) + 128
        content = bytearray(path.read_bytes())
        at = content.index(b"ks.npy") + len("ks.npy") + 4  # the size unpacked, of large files
        content[at : at + 8] = (2 << 30).to_bytes(8, "little")
        path.write_bytes(content)
        with pytest.raises(ValueError, match="would unpack to 2,147,483,648 bytes"):
            npz.read_members(path, ("ks",))
        assert scores.read_scores(path) is None

    def test_embeddings_that_claim_much_more_than_they_are(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(embeddings, "_MOST_REPEATED", 1 << 20)
        path = tmp_path / "e.npz"
        np.savez_compressed(path, embeddings=np.zeros((700, 1000), np.float32), labels=[0])
        with pytest.raises(MlbenchError, match="would unpack to 2,800,128 bytes"):
            read_embeddings(path)

    def test_an_array_that_claims_more_than_there_is(self, tmp_path: Path) -> None:
        path = tmp_path / "a.npy"
        np.save(path, np.zeros(4), allow_pickle=False)
        path.write_bytes(path.read_bytes().replace(b"(4,), ", b"(4000000000000,), ")[:128])
        with pytest.raises(ValueError, match="reshape"):
            npz.read_array(path)

    @pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE])
    def test_a_tar_with_a_long_description(self, tmp_path: Path, kind: bytes) -> None:
        folder = tmp_path / "d"
        folder.mkdir()
        info = tarfile.TarInfo("x")
        info.type, info.size = kind, 3 << 30
        with gzip.open(folder / "a.tar.gz", "wb") as file:
            file.write(info.tobuf(tarfile.GNU_FORMAT) + bytes(1 << 16))
        assert_refused(folder / "a.tar.gz", "it describes an entry with 3,221,225,472 bytes")

    def test_a_chain_of_descriptions(self, tmp_path: Path) -> None:
        (tmp_path / "d").mkdir()
        info = tarfile.TarInfo("x")
        info.type, info.size = tarfile.GNUTYPE_LONGNAME, 4
        (tmp_path / "d" / "a.tar").write_bytes((info.tobuf(tarfile.GNU_FORMAT) + bytes(512)) * 5000)
        with pytest.raises(MlbenchError, match="cannot unpack"):
            archives.unpack(tmp_path / "d" / "a.tar", "top", tmp_path / "out", LIMITS)

    @pytest.mark.parametrize("sparse", ["0.0", "0.1", "1.0", "gnu"])
    def test_files_with_holes(self, tmp_path: Path, sparse: str) -> None:
        (tmp_path / "d").mkdir()
        info = tarfile.TarInfo("top/x")
        if sparse == "gnu":
            info.type = tarfile.GNUTYPE_SPARSE
            content = info.tobuf(tarfile.GNU_FORMAT)
        else:
            major, minor = sparse.split(".")
            names = {"GNU.sparse.major": major, "GNU.sparse.minor": minor, "GNU.sparse.size": "9"}
            names |= {"GNU.sparse.map": "0,1"} if sparse == "0.1" else {}
            info.pax_headers = names
            content = info.tobuf(tarfile.PAX_FORMAT)
        (tmp_path / "d" / "a.tar").write_bytes(content + bytes(2048))
        if sparse == "0.0":  # without its map this is an ordinary file
            return
        assert_refused(tmp_path / "d" / "a.tar", "file with holes")

    def test_a_zip_of_very_many_entries(self, tmp_path: Path) -> None:
        (tmp_path / "d").mkdir()
        path = tmp_path / "d" / "a.zip"
        with zipfile.ZipFile(path, "w") as file:
            for number in range(3000):
                file.writestr(f"top/{number}", b"")
        assert_refused(path, "it contains more than 100 entries")

    def test_a_compressed_checkpoint_or_weights_file(self, tmp_path: Path) -> None:
        buffer = io.BytesIO()
        torch.save({"a": torch.zeros(9)}, buffer)
        with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(tmp_path / "w.pth", "w", 8) as new:
            for name in old.namelist():
                new.writestr(name, old.read(name))
        with pytest.raises(MlbenchError, match="is not a weights file"):
            read_state(tmp_path / "w.pth")


class TestDownloads:
    @pytest.fixture
    def server(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
        monkeypatch.setattr(download, "PACE", Pace(bytes=1000, seconds=0.3))
        with serving() as server:
            yield server

    def refused(self, url: str, folder: Path, message: str, size: int | None = 5000) -> None:
        started = time.monotonic()
        with pytest.raises(MlbenchError, match=message) as error:
            fetch_published([url], folder / "f", Pin(sha256="0" * 64, size=size), "or ask")
        assert "\n" not in str(error.value)
        assert time.monotonic() - started < 5

    def test_a_byte_at_a_time(self, server: Server, tmp_path: Path) -> None:
        url = server.add("/slow", Page(bytes(5000), drip=0.02))
        self.refused(url, tmp_path, r"less than 1,000 bytes came within 0\.3 s")

    @pytest.mark.parametrize(
        "start",
        [b"HTTP/1.1 100 Continue\r\n\r\n", b"x", b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 50],
    )
    def test_an_answer_that_never_comes_to_the_point(
        self, server: Server, tmp_path: Path, start: bytes
    ) -> None:
        url = server.add("/endless", Page(raw=start, drip=0.02))
        self.refused(url, tmp_path, "less than 1,000 bytes|100 headers|BadStatusLine|line")

    @pytest.mark.parametrize("chunk", [b"-5", b"zz", b"f" * 40, b"", b"-"])
    def test_chunks_of_no_size(self, server: Server, tmp_path: Path, chunk: bytes) -> None:
        head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        url = server.add("/chunks", Page(raw=head + chunk + b"\r\nabc"))
        self.refused(url, tmp_path, "cannot fetch f from")

    def test_redirects_in_a_circle(self, server: Server, tmp_path: Path) -> None:
        url = server.add("/round", Page(location="/round"))
        self.refused(url, tmp_path, "infinite loop")

    def test_huge_headers(self, server: Server, tmp_path: Path) -> None:
        url = server.add("/huge", Page(raw=b"HTTP/1.1 200 OK\r\na: " + b"x" * 200_000))
        self.refused(url, tmp_path, "got more than 65536 bytes")

    def test_a_file_whose_size_is_not_published(
        self, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(download, "_MOST_UNPINNED", 3000)
        whole = server.add("/whole", Page(bytes(5000)))
        self.refused(whole, tmp_path, "has 5,000 bytes, expected at most 3,000", size=None)
        endless = server.add("/endless", Page(bytes(5000), lengths=False))
        self.refused(endless, tmp_path, "5,000 bytes, expected at most 3,000", size=None)

    @pytest.mark.parametrize("hard", [False, True])
    def test_a_part_that_is_a_link_is_not_written_through(
        self, server: Server, tmp_path: Path, hard: bool
    ) -> None:
        body, mine = bytes(5000), tmp_path / "mine"
        mine.write_bytes(b"precious")
        (os.link if hard else os.symlink)(mine, tmp_path / "f.part")
        url = server.add("/file", Page(body))
        fetch(url, tmp_path / "f", hashlib.sha256(body).hexdigest())
        assert (tmp_path / "f").read_bytes() == body
        assert mine.read_bytes() == b"precious"


@contextmanager
def few_descriptors(spare: int) -> Iterator[None]:
    """Let no more than a few files be open."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = max(int(path.name) for path in Path("/proc/self/fd").iterdir())
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 1 + spare, before[1]))
    taken = []
    try:
        while len(taken) < 1000:
            taken.append(os.open(os.devnull, os.O_RDONLY))
    except OSError:
        for handle in taken[:spare]:
            os.close(handle)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        for handle in taken[spare:]:
            os.close(handle)


class TestMachine:
    @pytest.mark.parametrize("room", [100, 3000, 100_000])
    def test_a_disk_that_fills_while_a_checkpoint_is_written(
        self, tmp_path: Path, room: int
    ) -> None:
        kept = Checkpoints(tmp_path, SPEC, "this")
        with disk_of(room), pytest.raises(MachineError, match="File too large; make room there"):
            kept.save({"a": torch.zeros(100_000)})
        assert [p for p in tmp_path.rglob("*") if p.is_file()] == []

    def test_too_few_file_descriptors_are_no_damage(self, tmp_path: Path) -> None:
        path = saved(tmp_path)
        kept = Checkpoints(tmp_path, SPEC, "this")
        kept.save({"a": 1})
        whole = scores.read_scores(path)
        assert whole is not None
        with few_descriptors(0):
            for read in (kept.load, lambda: store.load(path), lambda: scores.read_scores(path)):
                with pytest.raises(MachineError, match="Too many open files; raise the limit"):
                    read()
            with pytest.raises(MachineError):
                store.find(tmp_path, SPEC, "", "")
            with pytest.raises(MachineError):
                store.read_results(tmp_path)
        assert kept.load() == {"a": 1}

    @pytest.mark.parametrize(
        "error",
        [
            OSError(errno.EMFILE, os.strerror(errno.EMFILE)),
            RuntimeError("can't start new thread"),
            RuntimeError("unable to open file: Too many open files (24)"),
            OSError("Too many open files (os error 24)"),
        ],
    )
    def test_what_a_machine_lacks_is_no_fault_of_mlbench(self, error: Exception) -> None:
        problem = _problem(error, load_recipe("default"))
        assert "a bug in mlbench" not in problem
        assert "raise the limit" in problem

    def test_faults_stay_faults(self) -> None:
        for error in (RuntimeError("mat1 and mat2"), OSError(errno.ENOENT, "x"), KeyError("a")):
            assert lack(error) is None
            assert "a bug in mlbench" in _problem(error, load_recipe("default"))


def test_report_shows_no_marks_of_direction(tmp_path: Path) -> None:
    hostile = "a\u202eb\u200bc\u2066d"
    facts = record(SPEC).dataset
    made = record(SPEC, 0.5, loss=hostile, dataset=replace(facts, name=hostile))
    store.save(tmp_path, made, None)
    page = tmp_path / "report.html"
    write_report(tmp_path, page, None)
    text = page.read_text()
    assert not set(text) & set("\u202e\u200b\u2066")
    assert "\\u202e" not in text
