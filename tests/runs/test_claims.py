import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest

from mlbench.arrays import ImageArray
from mlbench.datasets.pixels import open_cache
from mlbench.errors import MlbenchError
from mlbench.interfaces import ImageSet
from mlbench.recipes.reading import load_recipe
from mlbench.recipes.spec import LossSpec, RunSpec
from mlbench.runs.claims import run_claim
from mlbench.system.locks import built_once

SPEC = RunSpec(load_recipe("default"), LossSpec("npairs"), 0)
FORK = multiprocessing.get_context("fork")
pytestmark = pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")


def hold(out: Path, ready: Connection) -> None:
    with run_claim(out, SPEC) as mine:
        ready.send(mine)
        time.sleep(60)


@contextmanager
def holder(out: Path) -> Iterator[int]:
    """Another process that holds the claim."""
    ours, theirs = FORK.Pipe()
    process = FORK.Process(target=hold, args=(out, theirs))
    process.start()
    try:
        assert process.pid is not None
        assert ours.recv()
        yield process.pid
    finally:
        process.kill()
        process.join()


def test_a_claim_is_one_process_s_until_it_dies(tmp_path: Path) -> None:
    with holder(tmp_path) as pid:
        with run_claim(tmp_path, SPEC) as mine:
            assert not mine
        with run_claim(tmp_path, replace(SPEC, seed=1)) as other:
            assert other
        os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            with run_claim(tmp_path, SPEC) as mine:
                if mine:
                    return
            time.sleep(0.01)
        pytest.fail("the claim outlived its holder")


def test_a_claim_ends_with_its_block_and_leaves_nothing_for_git(tmp_path: Path) -> None:
    with pytest.raises(KeyError), run_claim(tmp_path, SPEC):
        raise KeyError
    with run_claim(tmp_path, SPEC) as mine:
        assert mine
    assert (tmp_path / ".claims" / ".gitignore").read_text() == "*\n"


def test_a_folder_that_takes_no_locks_is_named(tmp_path: Path) -> None:
    (tmp_path / ".claims").write_text("in the way")
    with pytest.raises(MlbenchError, match=r"cannot lock .*\.claims"), run_claim(tmp_path, SPEC):
        pass


def test_who_waits_is_told_once_and_enters_afterwards(tmp_path: Path) -> None:
    order: list[str] = []
    waits = threading.Event()

    def second() -> None:
        def waiting() -> None:
            order.append("waits")
            waits.set()

        with built_once(tmp_path / "file", waiting):
            order.append("second")

    thread = threading.Thread(target=second)
    with built_once(tmp_path / "file", lambda: None):
        thread.start()
        assert waits.wait(5)
        order.append("first ends")
    thread.join(5)
    assert order == ["waits", "first ends", "second"]


def open_slowly(log: Path, key: str) -> None:
    def read(i: int) -> ImageArray:
        with log.open("a") as file:
            file.write(f"{i}\n")
        time.sleep(0.05)
        return np.full((8, 8, 3), i, np.uint8)

    names = tuple(map(str, range(6)))
    images = ImageSet(names, np.zeros(6, np.int64), ("a",), read)
    cache = open_cache(images, 8, key)
    assert [int(cache.image(i)[0, 0, 0]) for i in range(6)] == list(range(6))


def test_of_several_processes_one_builds_the_cache(tmp_path: Path) -> None:
    log = tmp_path / "log"
    arguments = (log, str(tmp_path))
    processes = [FORK.Process(target=open_slowly, args=arguments) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert sorted(log.read_text().split()) == list("012345")
