"""Are our contracts files of the standard, as others read it?"""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import open_data_contract_standard
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from open_data_contract_standard.model import OpenDataContractStandard

from validation.inference import infer, read_sample, write
from validation.standard import FIELDS

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


STANDARD = Path(open_data_contract_standard.__file__).with_name("schema.json")
MAPPINGS = {
    "SchemaElement": ("SchemaObject", "SchemaProperty"),
    "SchemaBaseProperty": ("SchemaProperty",),
    "SchemaItemProperty": ("SchemaProperty",),
    "AuthoritativeDefinitions": ("AuthoritativeDefinition",),
    "DataQualityOperators": ("DataQuality",),
    "DataQualityLibrary": ("DataQuality",),
    "DataQualitySql": ("DataQuality",),
    "DataQualityCustom": ("DataQuality",),
    "RelationshipBase": ("Relationship",),
    "RelationshipSchemaLevel": ("Relationship",),
    "RelationshipPropertyLevel": ("Relationship",),
}
"""Definition of the standard's JSON schema -> the mappings of ours that have its fields, where the names differ."""
INNER = {"description": "Description", "logicalTypeOptions": "LogicalTypeOptions", "map": "Map"}
"""Fields whose own fields are defined in place."""
WHOLE = {"Server", "ServerSource", "Context"}
"""Definitions whose fields are shown whole: they depend on the kind of a server, or are free."""


def fields_of(node: Any, mapping: str) -> Iterator[tuple[str, str]]:
    """Every field that a part of the JSON schema defines, with the mapping that has it."""
    if isinstance(node, list):
        for one in node:
            yield from fields_of(one, mapping)
    if not isinstance(node, dict):
        return
    for name, inner in node.get("properties", {}).items():
        if isinstance(inner, dict):
            yield mapping, name
            if inner.get("type") == "object" and name in INNER:
                yield from fields_of(inner, INNER[name])
    for key, inner in node.items():
        if key not in {"properties", "if", "not"}:
            yield from fields_of(inner, mapping)


def standard_fields() -> set[tuple[str, str]]:
    """(mapping, field) of the whole standard."""
    schema = json.loads(STANDARD.read_text("utf-8"))
    found = set(fields_of({"properties": schema["properties"]}, "DataContract"))
    for name, definition in schema["$defs"].items():
        if name not in WHOLE:
            for mapping in MAPPINGS.get(name, (name,)):
                found |= {(INNER.get(at, at), field) for at, field in fields_of(definition, mapping)}
    return found


def test_every_field_of_the_standard_is_judged_named_or_shown() -> None:
    """The standard's JSON schema is walked whole: a field that no table of ours has fails."""
    found = standard_fields()
    assert len(found) > 150
    assert sorted((at, field) for at, field in found if field not in FIELDS.get(at, {})) == []


def test_a_field_of_a_later_standard_would_be_seen() -> None:
    """The planted fault: a field that the table does not have."""
    found = set(fields_of({"properties": {"freshField": {"type": "string"}}}, "SchemaProperty"))
    assert [field for at, field in found if field not in FIELDS[at]] == ["freshField"]


def test_the_documented_table_is_the_one_that_is_kept() -> None:
    """docs/contracts.md says of every field what becomes of it."""
    text = (Path(__file__).parents[2] / "docs" / "contracts.md").read_text("utf-8")
    documented: dict[str, dict[str, str]] = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 4 and cells[0].strip("`") in FIELDS and cells[0].startswith("`"):
            for use, cell in zip(("judged", "named", "shown"), cells[1:], strict=True):
                documented.setdefault(cells[0].strip("`"), {}).update(dict.fromkeys(re.findall("`([^`]+)`", cell), use))
    assert documented == FIELDS


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
