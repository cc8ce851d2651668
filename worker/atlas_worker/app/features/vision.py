"""Describes an image: its format, its size, and its average brightness.

PGM and PPM (plain and raw) and PNG are read, with the standard library alone. Brightness is
the mean of the colour samples from 0 (black) to 1 (white); alpha does not count. It is left out,
with a note, where the image is too large or stored in a way that is not decoded here.
"""

from __future__ import annotations

import itertools
import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from atlas_worker.app.errors import RequestError

IMAGE_BYTES = 16 * 1024 * 1024
# Undoing PNG's filters in Python takes about a second for this many bytes.
_DECODED_BYTES = 4 * 1024 * 1024
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_NETPBM = {b"P2": ("pgm", 1), b"P3": ("ppm", 3), b"P5": ("pgm", 1), b"P6": ("ppm", 3)}
_NETPBM_HEADER = re.compile(
    rb"(P[2356])" + rb"(?:\s|#[^\n]*\n)+([0-9]{1,9})" * 3 + rb"(?:#[^\n]*\n)?\s"
)
# PNG colour type -> samples per pixel, and how many of them are colour.
_PNG_COLOURS = {0: (1, 1), 2: (3, 3), 3: (1, 0), 4: (2, 1), 6: (4, 3)}

_UnfilterRow = Callable[[int, bytearray, bytearray, int], None]


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """The description of an image."""

    format: str
    width: int
    height: int
    mean_brightness: float | None
    note: str | None = None


def look_at(image: bytes) -> dict[str, Any]:
    """Describe the image; raises `RequestError` for an unknown or broken format."""
    return _look_at(image, _unfilter_row)


def look_at_quickly(image: bytes) -> dict[str, Any]:
    """Do the same, with whole rows of a PNG at once where their filter allows it."""
    return _look_at(image, _unfilter_row_as_a_whole)


def _look_at(image: bytes, unfilter_row: _UnfilterRow) -> dict[str, Any]:
    if image.startswith(_PNG_MAGIC):
        return asdict(_look_at_png(image, unfilter_row))
    if image[:2] in _NETPBM:
        return asdict(_look_at_netpbm(image))
    raise _refused("the body is not a PNG, PGM or PPM image", status=415)


def _look_at_netpbm(image: bytes) -> ImageFacts:
    header = _NETPBM_HEADER.match(image)
    if header is None:
        raise _refused("the image's header is broken")
    name, channels = _NETPBM[header[1]]
    width, height, most = (int(header[group]) for group in (2, 3, 4))
    if not (width and height and 0 < most < 65536):
        raise _refused("the image's header has a size or depth of nothing")
    count = width * height * channels
    data = image[header.end() :]
    if header[1] in (b"P2", b"P3"):
        total = _sum_of_text(data, count, most)
    else:
        total = _sum_of_bytes(data, count, 2 if most > 255 else 1, most)
    return ImageFacts(name, width, height, round(total / (count * most), 6))


def _sum_of_text(data: bytes, count: int, most: int) -> int:
    words = re.sub(rb"#[^\n]*", b"", data).split(maxsplit=count)[:count]
    if len(words) < count:
        raise _refused(f"the image ends early: {len(words)} of {count} samples")
    try:
        samples = [int(word) for word in words]
    except ValueError:
        raise _refused("a sample is not a number") from None
    if not all(0 <= sample <= most for sample in samples):
        raise _refused(f"a sample is not from 0 to {most}")
    return sum(samples)


def _sum_of_bytes(data: bytes, count: int, size: int, most: int) -> int:
    if len(data) < count * size:
        raise _refused(f"the image ends early: {len(data)} of {count * size} bytes")
    data = data[: count * size]
    if size == 1:
        highest, total = max(data), sum(data)
    else:
        samples = struct.unpack(f">{count}H", data)
        highest, total = max(samples), sum(samples)
    if highest > most:
        raise _refused(f"a sample is not from 0 to {most}")
    return total


def _look_at_png(image: bytes, unfilter_row: _UnfilterRow) -> ImageFacts:
    header, pixels = _png_chunks(image)
    width, height, depth, colour, compression, filtering, interlace = header
    if not (width and height and colour in _PNG_COLOURS and compression == filtering == 0):
        raise _refused("the image's header is broken")
    samples, colours = _PNG_COLOURS[colour]
    if depth != 8 or interlace or not colours:
        return ImageFacts(
            "png", width, height, None, "only 8-bit, plain PNGs without a palette are read"
        )
    stride = width * samples
    if (stride + 1) * height > _DECODED_BYTES:
        return ImageFacts(
            "png", width, height, None, f"larger than {_DECODED_BYTES} bytes when decoded"
        )
    rows = _unfilter(_inflate(pixels, (stride + 1) * height), stride, samples, unfilter_row)
    total = sum(sum(row[offset::samples]) for row in rows for offset in range(colours))
    return ImageFacts("png", width, height, round(total / (width * height * colours * 255), 6))


def _png_chunks(image: bytes) -> tuple[tuple[int, ...], bytes]:
    """Return the header's fields and the compressed pixels, each chunk checked by its CRC."""
    header: tuple[int, ...] | None = None
    pixels: list[bytes] = []
    position = len(_PNG_MAGIC)
    while position + 12 <= len(image):
        length, kind = struct.unpack_from(">I4s", image, position)
        data = image[position + 8 : position + 8 + length]
        checksum = image[position + 8 + length : position + 12 + length]
        if checksum != struct.pack(">I", zlib.crc32(data, zlib.crc32(kind))):
            raise _refused(f"the image's chunk at byte {position} is damaged")
        if header is None:
            if kind != b"IHDR" or length != 13:
                raise _refused("the image's header is broken")
            header = struct.unpack(">IIBBBBB", data)
        elif kind == b"IDAT":
            pixels.append(data)
        elif kind == b"IEND":
            return header, b"".join(pixels)
        position += 12 + length
    raise _refused("the image ends early")


def _inflate(data: bytes, size: int) -> bytes:
    try:
        # The limit keeps a small body from becoming a huge one.
        inflated = zlib.decompressobj().decompress(data, size)
    except zlib.error:
        raise _refused("the image's pixels are damaged") from None
    if len(inflated) != size:
        raise _refused(f"the image ends early: {len(inflated)} of {size} bytes")
    return inflated


def _unfilter(data: bytes, stride: int, step: int, unfilter_row: _UnfilterRow) -> list[bytearray]:
    """Undo the filter of each row, as the PNG specification defines them (section 9)."""
    rows: list[bytearray] = []
    above = bytearray(stride)
    for start in range(0, len(data), stride + 1):
        row = bytearray(data[start + 1 : start + 1 + stride])
        unfilter_row(data[start], row, above, step)
        rows.append(row)
        above = row
    return rows


def _unfilter_row(method: int, row: bytearray, above: bytearray, step: int) -> None:
    if method == 0:
        return
    if method > 4:
        raise _refused(f"the image uses an unknown filter {method}")
    for index in range(len(row)):
        left = row[index - step] if index >= step else 0
        up = above[index]
        if method == 1:
            predicted = left
        elif method == 2:
            predicted = up
        elif method == 3:
            predicted = (left + up) // 2
        else:
            predicted = _paeth(left, up, above[index - step] if index >= step else 0)
        row[index] = (row[index] + predicted) & 0xFF


def _unfilter_row_as_a_whole(method: int, row: bytearray, above: bytearray, step: int) -> None:
    if method == 1:  # each sample is its difference from the one before
        for channel in range(step):
            sums = itertools.accumulate(row[channel::step])
            row[channel::step] = bytes([total & 0xFF for total in sums])
    elif method == 2:  # from the one above
        row[:] = bytes([(one + up) & 0xFF for one, up in zip(row, above, strict=True)])
    else:
        _unfilter_row(method, row, above, step)


def _paeth(left: int, up: int, corner: int) -> int:
    estimate = left + up - corner
    by_left, by_up, by_corner = abs(estimate - left), abs(estimate - up), abs(estimate - corner)
    if by_left <= by_up and by_left <= by_corner:
        return left
    return up if by_up <= by_corner else corner


def _refused(message: str, *, status: int = 400) -> RequestError:
    return RequestError(
        "bad_image",
        message,
        hint="send a PNG, PGM or PPM file as the body",
        status=status,
        field="body",
    )
