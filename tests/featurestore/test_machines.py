"""Machines differ in zone, locale and hash seed; values do not."""

import ast
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pytest

import featurestore
from featurestore.online.types import to_column
from streaming.source.json_rows import rfc3339
from validation.instant_columns import as_micros

PACKAGES = [Path(featurestore.__file__).parent.parent / name for name in ("featurestore", "streaming", "validation")]
SCRIPT = """
import sys
import pyarrow as pa
from featurestore.offline.asof import as_of_join
from featurestore.offline.asof_view import AsOfView, Feature, Key
from featurestore.offline.connection import Limits, query
from featurestore.offline.entity_rows import EntityRows
from featurestore.offline.sources import scan_table
from validation.compiled.relation import _database
from pathlib import Path

utc = pa.timestamp("us", "UTC")
for dtype in (utc, pa.timestamp("us"), pa.timestamp("ns", "Europe/Berlin")):
    seen = pa.array([7_000_000, 9_000_000], utc).cast(dtype)
    rows = pa.table({"id": [1, 1], "ts": pa.array([5, 5], utc), "seen": seen})
    view = AsOfView(name="v", scan=scan_table(rows, name="rows"), keys=(Key("id", "id", "INT64"),), timestamp="ts",
                    created=None, ttl_us=0, features=(Feature("seen", "seen", "UNIX_TIMESTAMP"),))
    asked = EntityRows(pa.table({"id": [1], "at": pa.array([9], utc)}), "at")
    found = as_of_join(asked, [view], limits=Limits(threads=1))
    print(found.table["seen"].cast(pa.int64()).to_pylist(), found.table["seen"].type)
with query("SELECT TIMESTAMPTZ '2024-03-10 06:00:00' AS t", search_path=Path(), limits=Limits()) as found:
    print(found.read_all()["t"].cast(pa.int64()).to_pylist())
print(_database().cursor().sql("SELECT make_timestamptz(0) AS t").to_arrow_table().schema.field("t").type)
"""


@pytest.mark.parametrize(
    ("zone", "locale"), [("Etc/UTC", "C"), ("America/New_York", "tr_TR.UTF-8"), ("Europe/Berlin", "de_DE.ISO-8859-1")]
)
def test_a_tie_with_a_timestamp_feature_is_one_in_every_zone(zone: str, locale: str) -> None:
    """DuckDB gives zoned columns the session's zone, and its name is part of an Arrow type."""
    env = {**os.environ, "TZ": zone, "LC_ALL": locale, "PYTHONHASHSEED": "random"}
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT], check=False, capture_output=True, text=True, env=env, timeout=60
    )
    assert ran.stdout.splitlines() == [
        *["[7000000] timestamp[us, tz=UTC]"] * 3,
        "[1710050400000000]",
        "timestamp[us, tz=UTC]",
    ], ran.stderr


AUTUMN = [datetime(2024, 10, 27, 0, 30, tzinfo=UTC), datetime(2024, 10, 27, 1, 30, tzinfo=UTC)]


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_the_hour_that_repeats_in_autumn_is_two_hours(unit: str) -> None:
    """A zoned value is an instant: half past two in Berlin, twice, and nothing about it is ambiguous."""
    column = pa.array(AUTUMN, pa.timestamp("us", "UTC")).cast(pa.timestamp(unit, "Europe/Berlin"))
    micros = [int(each.timestamp()) * 1_000_000 for each in AUTUMN]
    assert as_micros(column).to_pylist() == micros
    assert to_column(column, "UNIX_TIMESTAMP", name="at").cast(pa.int64()).to_pylist() == micros
    assert rfc3339(column).to_pylist() == ["2024-10-27T00:30:00Z", "2024-10-27T01:30:00Z"]


def test_no_text_file_is_read_or_written_in_the_machines_own_encoding() -> None:
    """Every call that opens text names its encoding (an empty lock file holds none)."""
    wrong = []
    for path in sorted(file for folder in PACKAGES for file in folder.rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(source)):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            if node.func.attr not in ("read_text", "write_text") or ".lock" in ast.unparse(node):
                continue
            positional = node.func.attr == "read_text" and bool(node.args)
            if not positional and all(word.arg != "encoding" for word in node.keywords):
                wrong.append(f"{path.name}: {ast.unparse(node)}")
    # A place in an object store, whose text is UTF-8 by its own definition.
    assert [each for each in wrong if not each.startswith("sinks.py")] == []
