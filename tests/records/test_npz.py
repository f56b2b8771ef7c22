"""The quick reader of .npz files against numpy's own."""

import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from mlbench.system import npz

DAMAGED = (ValueError, struct.error, zlib.error)
numbers = arrays.arrays(
    st.sampled_from(["u1", "i2", "<i8", "<f4", "<f8", "?"]),
    arrays.array_shapes(min_dims=0, max_dims=3, min_side=0),
)


def save(path: Path, compressed: bool, **named: np.ndarray) -> None:
    (np.savez_compressed if compressed else np.savez)(path, **named)  # type: ignore[arg-type]


@settings(max_examples=50, deadline=None)
@given(one=numbers, two=numbers, compressed=st.booleans(), fortran=st.booleans())
def test_it_reads_what_numpy_reads(
    tmp_path_factory: pytest.TempPathFactory,
    one: np.ndarray,
    two: np.ndarray,
    compressed: bool,
    fortran: bool,
) -> None:
    path = tmp_path_factory.mktemp("npz") / "x.npz"
    save(path, compressed, one=np.asfortranarray(one) if fortran else one, two=two, rest=one)
    found = [npz.array(member) for member in npz.read_members(path, ("one", "two"))]
    with np.load(path) as wanted:
        for name, array in zip(("one", "two"), found, strict=True):
            assert (array.dtype, array.shape) == (wanted[name].dtype, wanted[name].shape)
            assert array.tobytes() == wanted[name].tobytes()


@pytest.mark.parametrize("compressed", [True, False])
def test_every_damaged_byte_and_every_cut_is_seen(tmp_path: Path, compressed: bool) -> None:
    path = tmp_path / "x.npz"
    save(path, compressed, one=np.arange(3.0))
    whole, (wanted,) = path.read_bytes(), npz.read_members(path, ["one"])
    end = whole.index(b"PK\x01\x02")  # the directory, which is not read
    for place in range(end):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        assert read(path) in (wanted, None)
        path.write_bytes(whole[:place])
        assert read(path) is None
    path.write_bytes(whole[:end])
    assert read(path) == wanted


def read(path: Path) -> bytes | None:
    try:
        (found,) = npz.read_members(path, ["one"])
    except DAMAGED:
        return None
    return found


def test_no_more_is_unpacked_than_is_declared(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    save(path, True, one=np.zeros(2**24, np.uint8))
    whole = path.read_bytes()
    # numpy writes the sizes of large files: 20 bytes behind the header of 30 and the name.
    place = 30 + len("one.npy") + 4
    assert struct.unpack_from("<Q", whole, place) == (2**24 + 128,)
    path.write_bytes(whole[:place] + struct.pack("<Q", 1000) + whole[place + 8 :])
    tracemalloc.start()
    try:
        assert read(path) is None
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_other_members_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    save(path, False, one=np.arange(3), two=np.arange(4))
    with pytest.raises(ValueError, match="two"):
        npz.read_members(path, ["two"])
    with pytest.raises(DAMAGED):
        npz.read_members(path, ["one", "two", "three"])


def test_objects_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    save(path, False, one=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="OBJECT"):
        npz.array(npz.read_members(path, ["one"])[0])
