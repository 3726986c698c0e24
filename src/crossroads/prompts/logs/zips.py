"""Members of a zip archive, those compressed with Zstandard included.

Inspect compresses its logs with Zstandard (method 93 of the zip format), which Python's ``zipfile``
reads only from 3.14 on; Arrow brings the decoder.
"""

from __future__ import annotations

import struct
import zipfile
import zlib

_ZSTANDARD = 93
_LOCAL_HEADER = struct.Struct("<4s5H3I2H")  # signature ... length of the name, of the extra field


def read_member(archive: zipfile.ZipFile, name: str) -> bytes:
    """Return the content of a member. Raises KeyError, BadZipFile."""
    import pyarrow as pa

    info = archive.getinfo(name)
    if info.compress_type != _ZSTANDARD:
        return archive.read(info)
    file = archive.fp
    assert file is not None
    file.seek(info.header_offset)
    header = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
    file.seek(header[-2] + header[-1], 1)
    packed = file.read(info.compress_size)
    try:
        with pa.CompressedInputStream(pa.BufferReader(packed), "zstd") as stream:
            content = bytes(stream.read())
    except (OSError, pa.ArrowException) as error:
        raise zipfile.BadZipFile(f"member {name!r}: {error}") from error
    if zlib.crc32(content) != info.CRC:
        raise zipfile.BadZipFile(f"member {name!r}: wrong checksum")
    return content
