"""Does an inferred contract load, observe, and hold for the data it came from?"""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner

from validation import inference
from validation.commands import app
from validation.compiled.batch import compile_batch
from validation.contract import load_contract
from validation.errors import PlatformError
from validation.examples import wrong_examples
from validation.files import read_data
from validation.judging import judge_file

RUN = CliRunner()
ROWS = [
    {"id": f"o{n}", "kind": "AB"[n % 2], "n": n, "x": None if n == 3 else n / 2, "at": f"2024-01-01T00:00:{n:02}Z"}
    | {"email": f"{n}@example.com", "ok": n > 2, "day": "2024-01-01"}
    for n in range(20)
]
NAMES = list(ROWS[0])


def written(tmp_path: Path, form: str) -> Path:
    """The rows as a file of this form."""
    path = tmp_path / f"orders.{form}"
    if form == "jsonl":
        path.write_text("\n".join(map(json.dumps, ROWS)))
    elif form == "csv":
        lines = [",".join("" if row[name] is None else str(row[name]) for name in NAMES) for row in ROWS]
        path.write_text("\n".join([",".join(NAMES), *lines]))
    else:
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    return path


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet"])
def test_the_contract_of_a_file_holds_for_the_file(tmp_path: Path, form: str) -> None:
    """It loads, every rule observes and passes, and types, enumerations, bounds and keys are found."""
    path, output = written(tmp_path, form), tmp_path / "orders.odcs.yaml"
    result = RUN.invoke(app, ["contract", "init", str(path), "--output", str(output), "--owner", "team"])
    assert result.exit_code == 0, result.output
    contract = load_contract(output)
    assert {rule.mode for rule in contract.rules} == {"observe"}
    assert contract.owner == "team"
    text = "string" if form == "parquet" else "timestamp"
    day = "string" if form == "parquet" else "date"
    assert contract.types == {
        "id": "string",
        "kind": "string",
        "n": "integer",
        "x": "number",
        "at": text,
        "email": "string",
        "ok": "boolean",
        "day": day,
    }
    ids = {rule.id for rule in contract.rules}
    assert {"id_unique", "kind_known", "n_range", "x_range", "id_present", "some_rows"} <= ids
    assert "x_present" not in ids
    verdict = compile_batch(contract).run(read_data(path, contract))
    assert verdict.outcome == "passed"
    examples = {column.name: column.examples for column in contract.columns}
    assert (examples["id"], examples["n"], examples["email"]) == ((), (), ()), "keys and addresses are no examples"
    assert examples["kind"]
    assert wrong_examples(contract) == []


def test_personal_values_do_not_go_into_the_contract(tmp_path: Path) -> None:
    """A column that sounds personal is classified so, and has no rule that quotes its values."""
    path = tmp_path / "people.jsonl"
    path.write_text('{"first_name": "Zaphod", "pets": "cat"}\n' * 20)
    text = RUN.invoke(app, ["contract", "init", str(path)]).output
    assert "classification: pii" in text
    assert "Zaphod" not in text
    assert "cat" in text


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("customerId", ["c1", "c2"]),
        ("user_key", [7, 8]),
        ("card_number", ["4111 1111 1111 1111", "4012 8888 8888 1881"]),
        ("session", ["sess-a1", "sess-b2"]),
        ("what", ["123e4567-e89b-12d3-a456-426614174000", "123e4567-e89b-12d3-a456-426614174001"]),
        ("who", ["zaphod@example.org", "ford@example.org"]),
        ("host", ["10.0.0.1", "10.0.0.2"]),
        ("iban", ["DE89370400440532013000", "GB82WEST12345698765432"]),
    ],
)
@pytest.mark.parametrize("repeats", [1, 20])
def test_identifiers_are_neither_examples_nor_enumerations(
    tmp_path: Path, name: str, values: list[object], repeats: int
) -> None:
    """Whether a column is called so, looks so or does not repeat: no value of it stands in the contract."""
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({name: value}) + "\n" for value in values * repeats))
    text = RUN.invoke(app, ["contract", "init", str(path)]).output
    document = yaml.safe_load(text)
    (prop,) = document["schema"][0]["properties"]
    assert prop["name"] == name
    assert "examples" not in prop
    assert not any(str(value) in yaml.safe_dump(prop.get("quality", [])) for value in values)


def test_a_mixed_column_says_what_was_found(tmp_path: Path) -> None:
    """In the contract and on the terminal; the contract loads, and the rows keep it."""
    path, output = tmp_path / "rows.jsonl", tmp_path / "rows.odcs.yaml"
    lines = [{"v": 1, "o": {"a": 1}}, {"v": "x", "o": {"a": "b"}}, {"v": None, "o": {}}, {"v": 2, "o": {"c": [1]}}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = RUN.invoke(app, ["contract", "init", str(path), "--output", str(output)])
    assert done.exit_code == 0, done.output
    assert "column 'v': mixed types: 2 integer, 1 string; decide for one of them" in done.stderr
    contract = load_contract(output)
    assert contract.types == {"v": "", "o": "object"}
    assert contract.columns[0].description == "mixed types: 2 integer, 1 string; decide for one of them"
    verdict = compile_batch(contract).run(read_data(path, contract))
    assert verdict.outcome == "passed"


def test_texts_that_are_no_instants_stay_texts(tmp_path: Path) -> None:
    """The thirteenth month, digits in JSON, leading zeros in CSV; nested values and nothing at all."""
    path = tmp_path / "odd.jsonl"
    path.write_text('{"a": "2024-13-01", "zip": "01234", "l": [1], "o": {"a": 1}, "nothing": null}\n')
    output = tmp_path / "c.yaml"
    assert RUN.invoke(app, ["contract", "init", str(path), "--output", str(output)]).exit_code == 0
    assert load_contract(output).types == {
        "a": "string",
        "zip": "string",
        "l": "array",
        "o": "object",
        "nothing": "string",
    }

    path = tmp_path / "odd.csv"
    path.write_text("zip,n\n01234,12\n")
    assert "logicalType: integer" in RUN.invoke(app, ["contract", "init", str(path)]).output
    assert "name: zip\n    logicalType: string" in RUN.invoke(app, ["contract", "init", str(path)]).output


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    """A contract that exists is someone's work."""
    path, output = written(tmp_path, "jsonl"), tmp_path / "c.yaml"
    output.write_text("mine")
    result = RUN.invoke(app, ["contract", "init", str(path), "--output", str(output)])
    assert isinstance(result.exception, PlatformError)
    assert "exists already" in str(result.exception)
    assert output.read_text() == "mine"
    path.write_text("")
    empty = RUN.invoke(app, ["contract", "init", str(path)])
    assert "found no columns" in str(empty.exception)


@pytest.mark.parametrize(
    ("name", "text", "logical"),
    [
        ("rows.jsonl", '{"n": 99999999999999999999999}\n{"n": 1}\n', "integer"),
        ("rows.jsonl", '{"n": 9223372036854775808}\n{"n": 9223372036854775809}\n', "integer"),
        ("rows.jsonl", '{"n": 18446744073709551617}\n{"n": 1.5}\n', "number"),
        ("rows.jsonl", '{"n": [18446744073709551617]}\n{"n": [1]}\n', "array"),
        ("rows.jsonl", '{"n": {"a": 18446744073709551617}}\n', "object"),
        ("rows.jsonl", '{"n": 1e400}\n{"n": 1}\n', "number"),
        ("rows.csv", "n\n1234567890123456789\n-9223372036854775808\n", "integer"),
        ("rows.csv", "n\n9223372036854775808\n9223372036854775809\n", "string"),
        ("rows.csv", "n\n" + "9" * 5_000 + "\n1\n", "string"),
    ],
)
def test_integers_beyond_64_bits_are_inferred_and_keep_the_contract(
    name: str, text: str, logical: str, tmp_path: Path
) -> None:
    """No digit is lost to a double, and the file keeps what was inferred from it."""
    path = tmp_path / name
    path.write_text(text)
    document = inference.infer(inference.read_sample(path), source="rows")
    assert document["schema"][0]["properties"][0]["logicalType"] == logical
    (tmp_path / "c.odcs.yaml").write_text(inference.write(document, now_us=0))
    outcome = judge_file(path, load_contract(tmp_path / "c.odcs.yaml"), now_us=0)
    assert (outcome.verdict.outcome, outcome.quarantined) == ("passed", 0), outcome.lines
