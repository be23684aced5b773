"""Are our contracts files of the standard, as others read it?"""

import os
import subprocess
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from open_data_contract_standard.model import OpenDataContractStandard

from validation.inference import infer, read_sample, write

CONTRACTS = sorted((Path(__file__).parents[2] / "feature_repo" / "contracts").glob("*.odcs.yaml"))


@pytest.fixture
def inferred(tmp_path: Path) -> Path:
    """A contract inferred from a table of every type, in a folder as a table is."""
    folder = tmp_path / "orders"
    folder.mkdir()
    count = 200
    rows = pa.table(
        {
            "id": [f"a{n}" for n in range(count)],
            "at": pa.array(range(count), pa.timestamp("s", "UTC")),
            "amount": pa.array([n / 7 for n in range(count)]),
            "kind": [("x", "y")[n % 2] for n in range(count)],
            "some": pa.array([None if n % 3 else n for n in range(count)], pa.int64()),
            "ok": [n % 2 == 0 for n in range(count)],
            "day": pa.array(list(range(count)), pa.date32()),
            "tags": [["a"]] * count,
            "more": [{"x": n} for n in range(count)],
            "price": pa.array(list(range(count)), pa.decimal128(9, 2)),
            "email": [f"u{n}@example.org" for n in range(count)],
        }
    )
    pq.write_table(rows, folder / "1.parquet")
    target = tmp_path / "orders.odcs.yaml"
    target.write_text(write(infer(read_sample(folder), source="orders", owner="shop"), now_us=0))
    return target


def told(text: str) -> Any:
    """What the standard's own model keeps of a file."""
    return OpenDataContractStandard.from_string(text).model_dump(by_alias=True, exclude_none=True)


def test_the_standards_model_knows_every_word(inferred: Path) -> None:
    """It reads each file, and loses nothing: a key that the standard does not have would be gone."""
    for path in (*CONTRACTS, inferred):
        text = path.read_text()
        assert told(text) == yaml.safe_load(text), path


def test_a_word_of_another_dialect_would_be_seen() -> None:
    """The planted fault: one key that the standard does not have."""
    text = CONTRACTS[0].read_text().replace("logicalType: string", "logicalTipe: string", 1)
    assert told(text) != yaml.safe_load(text)


@pytest.mark.nightly
def test_datacontract_lint_passes(inferred: Path) -> None:
    """`make lint-contracts` installs the tool and says where it is; a file that is none fails."""
    tool = os.environ.get("DATACONTRACT")
    if tool is None:
        pytest.skip("DATACONTRACT names no datacontract-cli; run `make lint-contracts`")
    bad = inferred.with_name("bad.odcs.yaml")
    bad.write_text(CONTRACTS[0].read_text().replace("mustBe: 0", "mustBeZero: 0", 1))
    for path, code in (*((path, 0) for path in (*CONTRACTS, inferred)), (bad, 1)):
        done = subprocess.run([tool, "lint", str(path)], capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stdout
