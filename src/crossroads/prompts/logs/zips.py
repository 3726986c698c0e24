"""Members of a zip archive, those compressed with Zstandard included, within bounds.

Inspect compresses its logs with Zstandard (method 93 of the zip format), which Python's ``zipfile``
reads only from 3.14 on; Arrow brings the decoder. A small archive can unpack to more than a machine
holds, and can lie about it: sizes are checked before a member is unpacked, and while it is.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

from crossroads.core.errors import InputError

MOST_MEMBER_BYTES = 512 << 20
MOST_TOTAL_BYTES = 512 << 20
MOST_RATIO = 100  # of all that is unpacked to the file, where that is more

_PORTION = 1 << 20
_ZSTANDARD = 93
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, _ZSTANDARD)
_LOCAL_HEADER = struct.Struct("<4s5H3I2H")  # signature ... length of the name, of the extra field


class Members:
    """Reads the members of an archive as long as all of them together keep within the bounds."""

    def __init__(self, archive: zipfile.ZipFile, path: Path) -> None:
        self._archive, self._path = archive, path
        self._left = max(MOST_TOTAL_BYTES, MOST_RATIO * path.stat().st_size)

    def read(self, name: str) -> bytes:
        """Return the content of a member. Raises KeyError, BadZipFile, and InputError where it
        is too large."""
        info = self._archive.getinfo(name)
        most = min(MOST_MEMBER_BYTES, self._left)
        if info.file_size > most:
            raise InputError(
                f"{self._path}: member {name!r} unpacks to {info.file_size} bytes where {most} are "
                "left to it; if you trust the log, convert it with 'inspect log convert --to json'"
            )
        self._left -= info.file_size
        if info.compress_type not in _METHODS:
            raise zipfile.BadZipFile(f"member {name!r}: compression method {info.compress_type}")
        if info.compress_type == _ZSTANDARD:
            return _zstandard(self._archive, info)
        with self._archive.open(info) as stream:
            return _unpacked(stream.read, info)


def _zstandard(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    import pyarrow as pa

    file = archive.fp
    assert file is not None
    file.seek(info.header_offset)
    header = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
    file.seek(header[-2] + header[-1], 1)
    packed = file.read(info.compress_size)
    try:
        with pa.CompressedInputStream(pa.BufferReader(packed), "zstd") as stream:
            content = _unpacked(stream.read, info)
    except (OSError, pa.ArrowException) as error:
        raise zipfile.BadZipFile(f"member {info.filename!r}: {error}") from error
    if zlib.crc32(content) != info.CRC:
        raise zipfile.BadZipFile(f"member {info.filename!r}: wrong checksum")
    return content


def _unpacked(read: Callable[[int], bytes], info: zipfile.ZipInfo) -> bytes:
    """Read in portions, so that a member that is larger than it says is stopped in time."""
    content = bytearray()
    while portion := read(_PORTION):
        content += portion
        if len(content) > info.file_size:
            raise zipfile.BadZipFile(f"member {info.filename!r}: larger than it says")
    return bytes(content)
