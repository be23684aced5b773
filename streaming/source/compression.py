"""Uncompress a batch of records up to a bound, in pieces: a megabyte can say that it is gigabytes."""

import zlib
from typing import Any, Final

import lz4.frame
from kafka.errors import CorruptRecordError

LARGEST_BATCH: Final = 64 << 20
"""Bytes of one batch once it is uncompressed; producers send a megabyte, unless they are told otherwise."""
_GZIP: Final = 31
"""zlib's number for gzip's framing."""
_GZIP_CODEC: Final = 1
_LZ4_CODEC: Final = 3
_NAMES: Final = {2: "snappy", 4: "zstd"}


def uncompress(batch: Any, most: int = LARGEST_BATCH) -> None:
    """Let a batch of kafka-python hold its records uncompressed.

    Raises CorruptRecordError where that is larger than `most`, torn, or compressed in a way that is not read here.
    """
    kind = batch.compression_type
    if not kind or batch._decompressed:  # noqa: SLF001 - the seam that `read_flat` explains
        return
    packed = bytes(memoryview(batch._buffer)[batch._pos :])  # noqa: SLF001
    where = f"the batch at offset {batch.base_offset}"
    try:
        if kind == _GZIP_CODEC:
            data = _gunzip(packed, most)
        elif kind == _LZ4_CODEC:
            data = _unlz4(packed, most)
        else:
            raise CorruptRecordError(
                f"{where} is compressed with {_NAMES.get(kind, kind)}, which is not read here; let producers take "
                "gzip, lz4 or none, and step past it with `featurestore stream skip`"
            )
    except (zlib.error, RuntimeError, EOFError) as error:
        raise CorruptRecordError(f"{where} cannot be uncompressed: {error}") from error
    if len(data) > most:
        raise CorruptRecordError(f"{where} is larger than {most} bytes once it is uncompressed")
    batch._buffer, batch._pos, batch._decompressed = bytearray(data), 0, True  # noqa: SLF001


def _gunzip(packed: bytes, most: int) -> bytes:
    reader = zlib.decompressobj(_GZIP)
    found = reader.decompress(packed, most + 1)
    if len(found) <= most and (not reader.eof or reader.unused_data):
        raise EOFError("its compressed data is torn, or something follows it")
    return found


def _unlz4(packed: bytes, most: int) -> bytes:
    reader = lz4.frame.LZ4FrameDecompressor()
    found = bytes(reader.decompress(packed, most + 1))
    if len(found) <= most and (not reader.eof or reader.unused_data):
        raise EOFError("its compressed data is torn, or something follows it")
    return found
