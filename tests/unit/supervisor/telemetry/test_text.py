"""What is remembered of a series must be what the library writes of it."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.core import GaugeMetricFamily

from atlas_supervisor.telemetry.metrics import exposition
from atlas_supervisor.telemetry.metrics.exposition import TextWriter
from tests.unit.supervisor.telemetry.instruments import everything

HOSTILE = 'a\\b"c\nd{e}=f,\u202e'


class Some(CollectorRegistry):
    def __init__(self, families: list[Metric]) -> None:
        super().__init__()
        self._families = families

    def collect(self) -> Iterator[Metric]:
        yield from self._families


def gauge(value: float, label: str = "x", name: str = "a_b") -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, f"Help {HOSTILE}", labels=["one", "two"])
    family.add_metric([label, HOSTILE], value)
    return family


def test_everything_there_is_is_written_as_the_library_writes_it(tmp_path: Path) -> None:
    writer, families = TextWriter(), everything(tmp_path, os.getpid())

    for _ in range(2):  # the second time from memory
        assert writer.write(families) == generate_latest(Some(families))


@pytest.mark.parametrize("value", [0.0, -1.5, 1e300, 1e-9, 12345678.0, math.inf, -math.inf])
def test_a_remembered_series_gets_its_new_value(value: float) -> None:
    writer = TextWriter()
    writer.write([gauge(1.0)])

    assert writer.write([gauge(value)]) == generate_latest(Some([gauge(value)]))


def test_labels_that_differ_are_series_of_their_own() -> None:
    writer = TextWriter()
    for label in ("x", "y", HOSTILE, ""):
        assert writer.write([gauge(1, label)]) == generate_latest(Some([gauge(1, label)]))


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exposition, "_SERIES_KEPT", 10)
    writer = TextWriter()
    for number in range(100):
        writer.write([gauge(number, str(number))])

    assert len(writer._series) <= 11
