"""What a contract's schema says is judged, in every file format and on events alike."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner

from validation.commands import app
from validation.compiled.batch import compile_batch
from validation.compiled.rows import compile_rows
from validation.contract import Contract, load_contract
from validation.errors import ContractError, PlatformError
from validation.formats import PATTERNS
from validation.judging import Outcome, judge_file

RUN = CliRunner()


def contract_file(folder: Path, *properties: dict[str, Any], name: str = "rows", **schema: Any) -> Path:
    """A contract of these columns."""
    head = {"apiVersion": "v3.1.0", "kind": "DataContract", "id": "rows", "version": "1.0.0", "status": "active"}
    path = folder / "rows.odcs.yaml"
    path.write_text(yaml.safe_dump({**head, "schema": [{"name": name, "properties": [*properties], **schema}]}))
    return path


def contract_of(folder: Path, *properties: dict[str, Any], **schema: Any) -> Contract:
    """The contract of these columns, read."""
    return load_contract(contract_file(folder, *properties, **schema))


def column(logical: str, **keys: Any) -> dict[str, Any]:
    """A column `v` of a logical type."""
    options = {name: keys.pop(name) for name in list(keys) if name in OPTIONS}
    return {"name": "v", "logicalType": logical, **({"logicalTypeOptions": options} if options else {}), **keys}


OPTIONS = (
    *("format", "pattern", "minLength", "maxLength", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
    *("multipleOf", "minItems", "maxItems", "uniqueItems", "minProperties", "maxProperties", "dimensions"),
    *("elementType",),
)
WHOLE = {"logicalType": "array", "items": {"logicalType": "integer", "logicalTypeOptions": {"minimum": 0}}}
NESTED = [
    {"name": "city", "logicalType": "string", "required": True},
    {"name": "zip", "logicalType": "string", "logicalTypeOptions": {"pattern": "^[0-9]{5}$"}},
    {"name": "lines", **WHOLE},
]
CASES: list[tuple[str, dict[str, Any], list[Any], list[Any]]] = [
    ("v_type", column("string"), ["a", ""], [1, True, ["a"]]),
    ("v_type", column("integer"), [1, -(2**53) - 1, 5.0], [1.5, "5", True]),
    ("v_type", column("number"), [1, 1.5, -0.0], ["1.5", True, {}]),
    ("v_type", column("boolean"), [True, False], [1, "true"]),
    (
        "v_type",
        column("date"),
        ["2024-03-10", "2024-03-10T00:00:00Z", "1960-02-29 00:00"],
        ["10.03.2024", "x", True, "2024-03-10T05:00:00Z", "2024-03-10 00:00:01", "2024-03-10T00:00:00+02:00"],
    ),
    ("v_items", column("array", items={"logicalType": "date"}), [["2024-03-10"]], [["2024-03-10T05:00"]]),
    ("v_type", column("timestamp"), ["2024-03-10T05:00:00Z", "2024-03-10 05:00"], ["soon", 1.5]),
    ("v_type", column("time"), ["05:00", "05:00:00.5"], ["25:00", 5]),
    ("v_type", column("array"), [[], [1, "a"]], ["[]", {"a": 1}]),
    ("v_type", column("object"), [{}, {"a": 1}], [[1], "{}"]),
    ("v_type", column("integer", format="i8"), [127, -128], [128, -129]),
    ("v_type", column("integer", format="u16"), [0, 65535], [-1, 65536]),
    ("v_type", column("integer", physicalType="SMALLINT"), [32767], [32768]),
    ("v_type", column("string", physicalType="VARCHAR(3)"), ["abc"], ["abcd"]),
    ("v_type", column("number", physicalType="DECIMAL(4, 1)"), [123.4, 0], [1234.5, 0.12]),
    ("v_multiple", column("integer", multipleOf=5), [0, -10, 2**60 + 4], [1, 2**60 + 1]),
    ("v_multiple", column("number", multipleOf=0.1), [0.3, 1.1, 7], [0.35]),
    ("v_range", column("integer", minimum=1, exclusiveMaximum=5), [1, 4], [0, 5]),
    ("v_range", column("time", minimum="08:00", maximum="17:00"), ["08:00", "17:00:00"], ["07:59", "17:00:01"]),
    ("v_length", column("string", minLength=2, maxLength=3), ["ab", "abc"], ["a", "abcd"]),
    ("v_pattern", column("string", pattern="^[A-Z]+$"), ["AB"], ["ab"]),
    ("v_format", column("string", format="email"), ["a.b+c@example.co.uk"], ["a@", "a b@c.de", "a@b.de\n"]),
    ("v_format", column("string", format="uuid"), ["123e4567-e89b-12d3-a456-426614174000"], ["123e4567", "x" * 36]),
    (
        "v_format",
        column("string", format="uri"),
        ["https://a.example/b?c=d#e", "urn:x:y"],
        ["a.example/b", "http://a b"],
    ),
    (
        "v_format",
        column("string", format="ipv4"),
        ["127.0.0.1", "255.255.255.255"],
        ["256.1.1.1", "1.2.3", "1.2.3.4.5"],
    ),
    ("v_format", column("string", format="ipv6"), ["::1", "2001:db8::ff00:42:8329"], ["1::2::3", "12345::", "1:2"]),
    ("v_format", column("string", format="hostname"), ["a-b.example"], ["-a.example", "a_b.example"]),
    (
        "v_format",
        column("string", format="date-time"),
        ["2024-03-10T05:00:00Z"],
        ["2024-03-10", "2024-13-10T05:00:00Z"],
    ),
    ("v_format", column("string", format="byte"), ["aGVsbG8=", ""], ["a", "aGVsbG8"]),
    ("v_items", column("array", minItems=1, maxItems=2), [[1], [1, 2]], [[], [1, 2, 3]]),
    ("v_items", column("array", uniqueItems=True), [[1, 2], [1, True], []], [[1, 1], [{"a": 1}, {"a": 1}]]),
    ("v_items", column("array", items={"logicalType": "integer"}), [[1, None]], [["1"], [1, 1.5]]),
    ("v_items", {"name": "v", **WHOLE}, [[0, 7]], [[-1]]),
    ("v_items", column("vector", dimensions=2), [[0.5, 1]], [[0.5], [0.5, "x"], [1, None]]),
    ("v_items", column("vector", dimensions=1, elementType="int8"), [[-128]], [[128]]),
    (
        "v_properties",
        column("object", properties=NESTED),
        [{"city": "B", "lines": [1]}],
        [{"zip": "12345"}, {"city": 5}],
    ),
    (
        "v_properties",
        column("object", properties=NESTED),
        [{"city": "B", "zip": "10115"}],
        [{"city": "B", "zip": "1"}, {"city": "B", "lines": [-1]}, {"city": "B", "lines": ["a"]}],
    ),
    ("v_properties", column("object", minProperties=1, maxProperties=2), [{"a": 1}], [{}, {"a": 1, "b": 2, "c": 3}]),
    (
        "v_properties",
        column("map", map={"key": {"logicalType": "string"}, "value": {"logicalType": "integer"}}),
        [{"a": 1}, {}],
        [{"a": "1"}],
    ),
    ("v_enum", column("string", enum=[{"value": "a"}, {"value": "b"}]), ["a"], ["c"]),
    ("v_enum", column("integer", enum=[{"value": 1, "label": "one"}]), [1], [2]),
]


def test_each_promise_is_judged_on_json_lines_and_on_events(tmp_path: Path) -> None:
    """What keeps it passes and what breaks it fails, one by one; as an event each value has the same answer."""
    for rule, prop, good, bad in CASES:
        contract = contract_of(tmp_path, prop)
        file = tmp_path / "rows.jsonl"
        file.write_text("".join(json.dumps({"v": value}) + "\n" for value in [*good, None, *bad]))
        told = judge_file(file, contract, now_us=0).verdict.rule(rule)
        assert (told.unexpected, told.evaluated) == (len(bad), len(good) + len(bad)), (rule, prop, told)
        check = compile_rows(contract)
        bit = 1 << [one.id for one in contract.rules].index(rule)
        values = [*good, None, *bad]
        masks = [check.check([{"v": value}])[0] for value in values]
        assert [bool(mask & bit) for mask in masks] == [*[False] * (len(good) + 1), *[True] * len(bad)], (rule, prop)
        assert masks == check.check([{"v": value} for value in values]), "one by one as all at once"


TEXTS: list[tuple[str, list[str], list[str]]] = [
    ("integer", ["1", "-7"], ["1.5", "a", "1_0"]),
    ("number", ["1", "1e3", ".5"], ["1,5", "a", "1_0.0"]),
    ("boolean", ["true", "False"], ["yes", "1"]),
    ("date", ["2024-03-10", "2024-03-10 00:00"], ["10.3.2024", "2024-03-10 05:00"]),
    ("timestamp", ["2024-03-10T05:00:00Z"], ["soon"]),
    ("time", ["05:00"], ["5 o'clock"]),
    ("array", ["[1]"], ["a", "{}"]),
    ("object", ['"{""a"": 1}"'], ["a", "[1]"]),
]


def test_numbers_that_no_type_holds_are_one_bad_value_each(tmp_path: Path) -> None:
    """Beyond 64 bits, beyond doubles, and not a number: no file is refused for them, and no command ends by them."""
    properties = [column("integer"), {"name": "at", "logicalType": "timestamp"}]
    lines = [
        '{"v": 9223372036854775808, "at": "2024-03-10"}',
        '{"v": 1e400, "at": "2024-03-10"}',
        '{"v": NaN, "at": "2024-03-10"}',
        '{"v": 1, "at": 99999999999999999999}',
    ]
    found = judged(tmp_path, "\n".join(lines), *properties)
    told = {rule.rule_id: [sample.row for sample in rule.samples] for rule in found.verdict.rules if rule.unexpected}
    assert told == {"v_type": [1], "at_type": [3]}
    assert (found.accepted, found.quarantined) == (2, 2)


@pytest.mark.parametrize(
    "values",
    [pa.array([[1], [1], [2]]), pa.array([b"a", b"a", b"b"]), pa.array([1, 1, 2]).cast(pa.decimal128(21, 2))],
    ids=["list", "binary", "decimal"],
)
def test_columns_of_every_type_are_unique_or_not(tmp_path: Path, values: pa.Array) -> None:
    """A key may be of any type: lists, decimals and bytes are compared as they are."""
    contract = contract_of(tmp_path, {"name": "v", "unique": True})
    told = compile_batch(contract).run(pa.table({"v": values})).rule("v_unique")
    assert (told.outcome, told.unexpected) == ("failed", 2)


@pytest.mark.parametrize(("logical", "good", "bad"), TEXTS)
def test_a_column_of_csv_is_judged_value_by_value(
    tmp_path: Path, logical: str, good: list[str], bad: list[str]
) -> None:
    """Rows whose text is not of the declared type are set aside; the others are accepted."""
    file = tmp_path / "rows.csv"
    file.write_text(
        "n,v\n"
        + "".join(f'{n},"{v}"\n' if "," in v and v[0] != '"' else f"{n},{v}\n" for n, v in enumerate([*good, *bad]))
    )
    found = judge_file(file, contract_of(tmp_path, {"name": "n", "logicalType": "integer"}, column(logical)), now_us=0)
    assert (found.accepted, found.quarantined) == (len(good), len(bad))
    assert found.verdict.rule("v_type").unexpected == len(bad)


PHYSICAL: list[tuple[dict[str, Any], pa.Array, int]] = [
    (column("integer"), pa.array(["a", "1", None]), 2),
    (column("string"), pa.array([1, 2, 3]), 3),
    (column("string"), pa.array(["a", "b"]).dictionary_encode(), 0),
    (column("number"), pa.array([True, False]), 2),
    (column("boolean"), pa.array([0, 1]), 2),
    (column("date"), pa.array(["x", "2024-03-10"]), 1),
    (column("date"), pa.array([1, 2]), 2),
    (column("date"), pa.array([0, 86_400, 86_401, -1, None], pa.timestamp("s")), 2),
    (column("date"), pa.array([0, 3_600_000], pa.timestamp("ms", "Europe/Berlin")), 1),
    (column("date", physicalType="TIMESTAMP"), pa.array([0, 1], pa.timestamp("us")), 1),
    (column("date"), pa.array([1], pa.date32()), 0),
    (column("date"), pa.array(["2024-03-10", "2024-03-10T05:00"]), 1),
    (column("timestamp"), pa.array([1_700_000_000_000]), 0),
    (column("timestamp"), pa.array([5, 1_700_000_000]), 1),
    (column("timestamp"), pa.array([1, 2], pa.timestamp("ns")), 0),
    (column("timestamp", physicalType="TIMESTAMP"), pa.array(["2024-03-10T05:00:00Z"]), 1),
    (column("integer"), pa.array([1.0, 2.5, float("nan")]), 1),
    (column("number"), pa.array([1, 2], pa.decimal128(9, 2)), 0),
    (column("string"), pa.array([b"a"]), 1),
    (column("array"), pa.array([[1]]), 0),
    (column("array"), pa.array([{"a": 1}]), 1),
    (column("object"), pa.array(["a"]), 1),
    (column("time"), pa.array([1], pa.time64("us")), 0),
    (column("integer", physicalType="INT"), pa.array([1, 2**31]), 1),
    (column("integer", physicalType="INT"), pa.array([2**31], pa.uint32()), 1),
    (column("string", physicalType="CHAR(2)"), pa.array(["ab", "abc"]), 1),
]


@pytest.mark.parametrize("rows_in_python", [0, 2_048])
def test_columns_of_parquet_are_held_to_their_type(tmp_path: Path, rows_in_python: int) -> None:
    """By their physical type where it decides, else value by value; by DuckDB and by the row function alike."""
    for prop, values, bad in PHYSICAL:
        contract = contract_of(tmp_path, prop).at("producer")
        pq.write_table(pa.table({"v": values}), tmp_path / "rows.parquet")
        found = judge_file(tmp_path / "rows.parquet", contract, now_us=0)
        assert (found.verdict.rule("v_type").unexpected, found.quarantined) == (bad, bad), (prop, values)
        plain = values.dictionary_decode() if pa.types.is_dictionary(values.type) else values
        check = compile_batch(contract, python_rows=rows_in_python)
        told = check.run(pa.table({"v": plain})).rule("v_type")
        assert (told.outcome, told.unexpected) == ("failed" if bad else "passed", bad), (prop, values)
        assert len(check.split(pa.table({"v": plain}))[1]) == bad


def test_one_bad_value_sets_one_row_aside_and_writes_every_report(tmp_path: Path) -> None:
    """Report, JUnit and the quarantined row, which holds the value as the file has it."""
    path = contract_file(tmp_path, {"name": "id", "logicalType": "integer"}, column("string"))
    for name, lines in (
        ("rows.jsonl", [*[json.dumps({"id": n, "v": "a"}) for n in range(1_000)], '{"id": "a", "v": "b"}']),
        ("rows.csv", ["id,v", *[f"{n},a" for n in range(1_000)], "a,b"]),
    ):
        (tmp_path / name).write_text("\n".join(lines) + "\n")
        aside = tmp_path / name.replace(".", "_")
        report, junit = aside.with_suffix(".json"), aside.with_suffix(".xml")
        options = ["--contract", str(path), "--quarantine", str(aside), "--report", str(report), "--junit", str(junit)]
        done = RUN.invoke(app, ["contract", "test", str(tmp_path / name), *options])
        assert (done.exit_code, "1000 accepted, 1 to quarantine" in done.output) == (1, True), done.output
        (violation,) = json.loads(report.read_bytes())["violations"]
        assert (violation["rule_id"], violation["samples"]) == ("id_type", [{"row": 1000, "values": {"id": "a"}}])
        assert b'<failure message="1 of 1001 rows"' in junit.read_bytes()
        shown = RUN.invoke(app, ["quarantine", "show", "rows", "--folder", str(aside)]).output
        assert json.loads(json.loads(shown)["row"])["id"] == "a"


def judged(folder: Path, text: str, *properties: dict[str, Any], **schema: Any) -> Outcome:
    """What becomes of JSON lines."""
    (folder / "rows.jsonl").write_text(text)
    return judge_file(folder / "rows.jsonl", contract_of(folder, *properties, **schema), now_us=0)


KEY = [
    {"name": "a", "logicalType": "string", "primaryKey": True, "primaryKeyPosition": 2},
    {"name": "b", "logicalType": "integer", "primaryKey": True, "primaryKeyPosition": 1},
]


def test_a_primary_key_given_twice_breaks_the_contract(tmp_path: Path) -> None:
    """A composite one by all its columns, a single one by itself; a part that is missing breaks the null rule alone."""
    rows = '{"a": "x", "b": 1}\n{"a": "x", "b": 2}\n{"a": "y", "b": 1}\n'
    assert judged(tmp_path, rows, *KEY).verdict.outcome == "passed"
    twice = judged(tmp_path, rows + '{"a": "x", "b": 1}\n', *KEY).verdict
    assert (twice.rule("rows_primary_key").unexpected, twice.rule("rows_primary_key").outcome) == (2, "failed")
    lacking = judged(tmp_path, rows + '{"b": 1}\n{"b": 1}\n', *KEY).verdict
    assert [rule.rule_id for rule in lacking.rules if rule.outcome == "failed"] == ["a_required"]
    alone = judged(tmp_path, '{"a": "x"}\n{"a": "x"}\n', {"name": "a", "logicalType": "string", "primaryKey": True})
    assert alone.verdict.rule("a_unique").unexpected == 2


def test_a_key_is_unique_beside_a_value_of_another_type(tmp_path: Path) -> None:
    """One bad value does not keep repetition, bounds and statistics from being judged."""
    rule = {"type": "expect_column_mean_to_be_between", "kwargs": {"max_value": 2}}
    mean = {"id": "mean", "type": "custom", "engine": "great-expectations", "implementation": rule}
    prop = {"name": "a", "logicalType": "integer", "unique": True, "quality": [mean]}
    found = judged(tmp_path, '{"a": 1}\n{"a": 1}\n{"a": "x"}\n{"a": 4}\n{"a": null}\n', prop).verdict
    assert (found.rule("a_unique").unexpected, found.rule("a_type").unexpected) == (2, 1)
    assert found.rule("mean").observed == 2.0


def test_absent_columns_are_named_in_every_format(tmp_path: Path) -> None:
    """Columns that are not required too: a promised column that no row has."""
    properties = [{"name": name, "logicalType": "string"} for name in ("a", "b")]
    contract = contract_of(tmp_path, *properties)
    pq.write_table(pa.table({"a": ["x"]}), tmp_path / "rows.parquet")
    (tmp_path / "rows.csv").write_text("a\nx\n")
    (tmp_path / "rows.jsonl").write_text('{"a": "x"}\n')
    for ending in ("parquet", "csv", "jsonl"):
        verdict = judge_file(tmp_path / f"rows.{ending}", contract, now_us=0).verdict
        assert verdict.rule("rows_columns").outcome == "failed"
        assert "no column 'b'" in verdict.rule("b_type").reason


REFERENCE = {"name": "c", "logicalType": "integer", "relationships": [{"to": "customers.id"}]}


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_a_foreign_key_is_judged_where_the_other_file_lies_beside(tmp_path: Path, ending: str) -> None:
    """Rows whose key the other file lacks break it; without that file a line says that it was not judged."""
    rows = '{"c": 1}\n{"c": 2}\n{"c": null}\n'
    alone = judged(tmp_path, rows, REFERENCE)
    assert alone.verdict.outcome == "passed"
    assert "not judged: c_reference (c -> customers.id)" in alone.lines[0]
    texts = {"csv": "id\n1\n3\n", "jsonl": '{"id": 1}\n{"id": 3}\n'}
    if ending == "parquet":
        pq.write_table(pa.table({"id": [1, 3]}), tmp_path / "customers.parquet")
    else:
        (tmp_path / f"customers.{ending}").write_text(texts[ending])
    found = judged(tmp_path, rows, REFERENCE)
    told = found.verdict.rule("c_reference")
    assert (told.unexpected, told.evaluated, told.samples[0].values) == (1, 2, {"c": 2})
    assert found.report.violations[0].rule_id == "c_reference"


def test_a_composite_foreign_key_is_judged_as_one(tmp_path: Path) -> None:
    """Of the schema object, by fully qualified references too."""
    properties = [{"name": name, "logicalType": "integer"} for name in ("a", "b")]
    pair = {"from": ["rows.a", "rows.b"], "to": ["schema/pairs/properties/x", "schema/pairs/properties/y"]}
    (tmp_path / "pairs.jsonl").write_text('{"x": 1, "y": 2}\n')
    found = judged(tmp_path, '{"a": 1, "b": 2}\n{"a": 2, "b": 1}\n', *properties, relationships=[{"id": "p", **pair}])
    assert found.verdict.rule("p").unexpected == 1


@pytest.mark.parametrize(
    ("properties", "message"),
    [
        ([{"name": "v", "logicalType": "string", "requird": True}], "unknown key 'requird'; did you mean 'required'?"),
        ([column("string", minLenght=1)], "unknown key 'minLenght'; did you mean 'minLength'?"),
        ([column("array", items={"logicaltype": "string"})], "unknown key 'logicaltype'; did you mean 'logicalType'?"),
        ([column("object", properties=[{"name": "a", "uniqe": True}])], "unknown key 'uniqe'; did you mean 'unique'?"),
        ([{**REFERENCE, "relationships": [{"too": "a.b"}]}], "unknown key 'too'; did you mean 'to'?"),
        ([column("integer", format="int")], "logicalTypeOptions.format: found 'int'; allowed: i8"),
        ([column("integer", multipleOf=0)], "found 0; expected a number above 0"),
        ([column("array", minItems="1")], "found '1'; expected a whole number"),
        ([column("array", minItems=2, maxItems=1)], "found minItems 2 above maxItems 1"),
        ([column("array", items=[1])], "expected the property that each item is"),
        ([column("array", items={"logicalType": "text"})], "items.logicalType: found 'text'; allowed: string"),
        ([column("time", minimum="8 o'clock")], "cannot be judged"),
        ([column("string"), column("string")], "property 'v' is given twice"),
        ([{**REFERENCE, "relationships": [{"to": "customers"}]}], "expected a reference to a column"),
        ([{**REFERENCE, "relationships": [{"to": ["a.b", "a.c"]}]}], "found 2 columns for 1"),
    ],
)
def test_what_a_schema_cannot_mean_is_refused_with_its_line(
    tmp_path: Path, properties: list[dict[str, Any]], message: str
) -> None:
    """With file, line, path, what was found and what is allowed."""
    for prop in properties:
        misspelt = prop.pop("minLenght", None)
        if misspelt is not None:
            prop["logicalTypeOptions"] = {"minLenght": misspelt}
    path = contract_file(tmp_path, *properties)
    with pytest.raises(ContractError, match=r"rows\.odcs\.yaml:\d+: ") as caught:
        load_contract(path)
    assert message in str(caught.value)


NAMED = [
    (column("string", format="isbn"), "format 'isbn' is not judged"),
    (column("date", format="dd.MM.yyyy"), "format 'dd.MM.yyyy' is not judged: values are read as ISO 8601"),
    (column("string", minimum=1), "option minimum says nothing of a string"),
    (column("string", physicalType="geometry"), "physicalType 'geometry' is of no kind known here"),
    (column("string", physicalType="INT"), "physicalType 'INT' contradicts logicalType string"),
    ({"name": "v", "physicalType": "geometry"}, "has no logicalType"),
    (column("object", properties=[{**NESTED[0], "unique": True}]), "unique of a nested property is not judged"),
    (column("array", items={"logicalType": "string", "logicalTypeOptions": {"format": "isbn"}}), "column 'v[]'"),
    (REFERENCE, "relationship 'c_reference' (c -> customers.id) is judged by `contract test` alone"),
    (column("string", isNullable=True), "key 'isNullable' is of version 2"),
    (column("string", zzz=True), "key 'zzz' is none of the standard"),
]


@pytest.mark.parametrize(("prop", "remark"), NAMED)
def test_lint_names_what_nothing_judges(tmp_path: Path, prop: dict[str, Any], remark: str) -> None:
    """Nothing of a schema is passed over in silence."""
    shown = RUN.invoke(app, ["contract", "lint", str(contract_file(tmp_path, prop))])
    assert not isinstance(shown.exception, PlatformError), shown.exception
    assert (shown.exit_code, remark in shown.output) == (1, True), shown.output


@pytest.mark.parametrize("name", sorted(PATTERNS))
def test_a_format_is_a_whole_text(name: str) -> None:
    """No format is found in the middle of a text, nor before a newline that ends it."""
    import re

    assert PATTERNS[name].startswith("^")
    assert PATTERNS[name].endswith(r"\Z")
    assert len(PATTERNS[name]) < 2_000
    assert re.search(PATTERNS[name], "\n") is None


def test_where_the_schema_sets_rows_aside_is_said(tmp_path: Path) -> None:
    """Types reject a producer's rows unless the contract gives a mode; rules about many rows warn instead."""
    types = contract_of(tmp_path, column("integer", unique=True))
    assert {rule.id: rule.mode_at("producer") for rule in types.rules} == {
        "v_type": "quarantine",
        "v_unique": "observe",
        "rows_columns": "observe",
    }
    mode = [{"property": "mode", "value": "observe"}]
    watched = judged(tmp_path, '{"v": "a"}\n', column("integer", customProperties=mode))
    assert (watched.quarantined, watched.verdict.outcome) == (0, "failed")
    path = contract_file(tmp_path, column("integer", unique=True))
    path.write_text(
        path.read_text() + yaml.safe_dump({"customProperties": [{"property": "schemaMode", "value": "quarantine"}]})
    )
    assert [rule.mode for rule in load_contract(path).rules] == ["quarantine", "warn", "warn"]
    compile_rows(load_contract(path))
