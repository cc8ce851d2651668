"""Sparse latency histograms, in the buckets of the worker contract."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

from atlas_worker.contract import LATENCY_BUCKETS, bucket_milliseconds

_MORE = 0x80  # set in every byte of a varint but the last
_DAMAGED = "not a packed histogram"


class Histogram:
    """Counts per latency bucket. Histograms add up: over processes, minutes and hosts."""

    __slots__ = ("_counts",)

    def __init__(self, counts: Iterable[tuple[int, int]] = ()) -> None:
        self._counts: dict[int, int] = {}
        for bucket, count in counts:
            self.add(bucket, count)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Histogram) and self._counts == other._counts

    __hash__ = None  # type: ignore[assignment]  # mutable

    def __repr__(self) -> str:
        return f"Histogram({list(self)})"

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Yield the buckets that have calls, fastest first, each with its count."""
        return iter(sorted(self._counts.items()))

    def add(self, bucket: int, count: int = 1) -> None:
        """Add calls to a bucket. Raises ValueError for an invalid bucket or a negative count."""
        if not 0 <= bucket < LATENCY_BUCKETS:
            raise ValueError(f"there is no latency bucket {bucket}")
        if count < 0:
            raise ValueError(f"a bucket can't have {count} calls")
        if count:
            self._counts[bucket] = self._counts.get(bucket, 0) + count

    def merge(self, other: Histogram) -> None:
        """Add another histogram to this one."""
        counts = self._counts
        for bucket, count in other._counts.items():
            counts[bucket] = counts.get(bucket, 0) + count

    @property
    def count(self) -> int:
        """The number of calls."""
        return sum(self._counts.values())

    @property
    def mean_ms(self) -> float | None:
        """The mean in milliseconds, within 1 %; None without calls."""
        if not self._counts:
            return None
        total = sum(count * bucket_milliseconds(bucket) for bucket, count in self)
        return total / self.count

    def quantiles(self, *qs: float) -> list[float | None]:
        """Return several quantiles in milliseconds in one pass; `qs` are in ascending order."""
        buckets = self.quantile_buckets(qs)
        return [None if bucket is None else bucket_milliseconds(bucket) for bucket in buckets]

    def quantile_buckets(self, qs: Sequence[float]) -> list[int | None]:
        """Return the buckets of several quantiles in one pass; `qs` are in ascending order."""
        if any(not 0 <= q <= 1 for q in qs):
            raise ValueError(f"a quantile is between 0 and 1, not {qs}")
        calls, below = self.count, 0
        ranks = [max(1, math.ceil(q * calls)) for q in qs]
        found: list[int | None] = []
        for bucket, count in self:
            below += count
            while len(found) < len(ranks) and below >= ranks[len(found)]:
                found.append(bucket)
        return found + [None] * (len(ranks) - len(found))

    def to_bytes(self) -> bytes:
        """Return the histogram packed: each bucket as its distance to the last, and its count."""
        packed, last = bytearray(), 0
        for bucket, count in self:
            for number in (bucket - last, count):
                _pack(number, packed)
            last = bucket
        return bytes(packed)

    @classmethod
    def from_bytes(cls, packed: bytes) -> Histogram:
        """Return the histogram that `to_bytes` has packed. Raises ValueError for anything else."""
        numbers = list(_unpack(packed))
        if len(numbers) % 2:
            raise ValueError(_DAMAGED)
        histogram, bucket = cls(), 0
        for step, count in zip(numbers[::2], numbers[1::2], strict=True):
            bucket += step
            histogram.add(bucket, count)
        return histogram


def _pack(number: int, into: bytearray) -> None:
    """Append a number in groups of seven bits, the lowest first."""
    while number >= _MORE:
        into.append(number & 0x7F | _MORE)
        number >>= 7
    into.append(number)


def _unpack(packed: bytes) -> Iterator[int]:
    number = shift = 0
    for byte in packed:
        number |= (byte & 0x7F) << shift
        shift += 7
        if not byte & _MORE:
            yield number
            number = shift = 0
    if shift:
        raise ValueError(_DAMAGED)
