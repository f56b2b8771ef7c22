"""The first arrays of an ``.npz`` file, in a fraction of the time that ``numpy.load`` takes.

Members are read from the start of the file, without the directory at its end. What is not laid out
as ``numpy.savez`` and ``numpy.savez_compressed`` do it is refused.
"""

from __future__ import annotations

import functools
import io
import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

from mlbench.system.regular import open_regular

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_MOST_BYTES, _MOST_UNPACKED = 1 << 40, 1 << 28
"""Of a file, which bounds what is stored in it as it is; of one array that is compressed."""

# PKWARE's APPNOTE.TXT 6.3.10, 4.3.7: signature, flags, method, CRC-32, sizes packed and unpacked,
# lengths of the name and of what follows it; 4.5.3: unpacked and packed size of large files.
_HEADER, _SIZES = struct.Struct("<4s2xHH4x3I2H"), struct.Struct("<4x2Q")
_SIGNATURE, _IN_SIZES = b"PK\x03\x04", 0xFFFFFFFF
_STORED, _DEFLATED = 0, 8


def read_members(path: Path, names: Sequence[str], *, check: bool = True) -> list[bytes]:
    """Return the first members of an ``.npz``, each a whole ``.npy``.

    Args:
        path: the file.
        names: the arrays that the file must begin with, in this order.
        check: the CRC-32 of each; whoever has a digest of them can do without.

    Raises:
        OSError, IrregularFileError: it cannot be read.
        ValueError, struct.error, zlib.error: it does not begin with these arrays, whole.
    """
    with open_regular(path, limit=_MOST_BYTES) as file:
        return [_member(file, f"{name}.npy".encode(), check) for name in names]


def _member(file: BinaryIO, name: bytes, check: bool) -> bytes:
    start = _HEADER.unpack(file.read(_HEADER.size))
    signature, flags, method, crc, packed, size, name_length, extra_length = start
    found, extra = file.read(name_length), file.read(extra_length)
    if (signature, flags, found) != (_SIGNATURE, 0, name) or method not in (_STORED, _DEFLATED):
        raise ValueError(f"does not begin as numpy writes {name.decode()}")
    if _IN_SIZES in (packed, size):
        size, packed = _SIZES.unpack_from(extra)
    if packed > os.fstat(file.fileno()).st_size:  # reading would first make room for all of it
        raise ValueError(f"{name.decode()} is truncated")
    content = file.read(packed)
    if method == _DEFLATED:
        if size > _MOST_UNPACKED:
            raise ValueError(f"{name.decode()} would unpack to {size:,} bytes")
        # No more than it says: a few bytes may unpack to a thousand times as many.
        packing = zlib.decompressobj(-zlib.MAX_WBITS)
        content = packing.decompress(content, size + 1)
        if not packing.eof:
            raise ValueError(f"{name.decode()} is longer than it says, or cut off")
    if len(content) != size or (check and zlib.crc32(content) != crc):
        raise ValueError(f"{name.decode()} is damaged")
    return content


def read_array(path: Path) -> npt.NDArray[Any]:
    """Return the array of a ``.npy`` file; no more memory is taken than the file is long.

    Raises:
        OSError, IrregularFileError: it cannot be read.
        ValueError: it does not hold what its header says, or no numbers.
    """
    with open_regular(path, limit=_MOST_BYTES) as file:
        content = bytearray(os.fstat(file.fileno()).st_size)
        if file.readinto(content) != len(content):
            raise ValueError("it is truncated")
    return array(content)


def array(member: bytes | bytearray) -> npt.NDArray[Any]:
    """Return the array of a ``.npy``; one of bytes cannot be written to.

    Raises:
        ValueError: it is none of numbers, of the version that numpy writes for them.
    """
    import numpy as np

    start = 10 + int.from_bytes(member[8:10], "little")
    shape, order, dtype = _header(bytes(member[:start]))
    return np.frombuffer(member, dtype, offset=start).reshape(shape, order=order)


@functools.lru_cache(maxsize=256)
def _header(header: bytes) -> tuple[tuple[int, ...], Literal["C", "F"], np.dtype[Any]]:
    from numpy.lib import format as npy

    stream = io.BytesIO(header)
    if npy.read_magic(stream) != (1, 0):
        raise ValueError("not the version that numpy writes for numbers")
    shape, fortran, dtype = npy.read_array_header_1_0(stream)
    return shape, "F" if fortran else "C", dtype
