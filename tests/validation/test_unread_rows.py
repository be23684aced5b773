"""Rows that cannot be read at all: each is set aside as it came, and all others are judged."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from validation.commands import app
from validation.contract import Column, Contract, Rule
from validation.inference import read_sample
from validation.judging import judge_file
from validation.lines import ForeignData, UnreadableData
from validation.quarantine import read_quarantine
from validation.sarif import lines_of

PROMISED = Contract(
    name="rows",
    version="1.0.0",
    source="s",
    columns=(Column(name="n", logical_type="integer"), Column(name="s", logical_type="string")),
    rules=(
        Rule(
            id="n_type",
            expectation="expect_column_values_to_conform_to_schema",
            arguments={"column": "n", "shape": {"logicalType": "integer"}},
            mode="quarantine",
        ),
    ),
)
LINE = b'{"n": 1, "s": "a"}'
JSON_FAULTS = (
    *(b'{"n": 1', b"null", b"[]", b"[1, 2]", b"7", b'"text"', b"true", b"NaN", b"n,s", b"{'n': 1}", b"\0", b"\xff\xfe"),
    *(b'{"s": "\xff"}', b'{"n": 1} {"n": 2}', b"[" * 100_000),
)
CSV_FAULTS = (b"1", b"1,a,b", b"1,\xff", b'1,"a', b'"1,a', b"1,a,", b'1,"a"b",c')


def kept(tmp_path: Path, name: str, data: bytes) -> tuple[int, list[tuple[int, bytes, str]]]:
    """How many rows are accepted, and of each that is set aside number, bytes and detail; in = accepted + set aside."""
    path = tmp_path / name
    path.write_bytes(data)
    outcome = judge_file(path, PROMISED, now_us=0, quarantine=tmp_path / "q")
    rows = read_quarantine(tmp_path / "q").to_pylist() if (tmp_path / "q").exists() else []
    assert outcome.report.rows == outcome.verdict.rows == outcome.accepted + outcome.quarantined
    assert outcome.quarantined == outcome.report.quarantined == len(rows)
    return outcome.accepted, [(row["offset"], row["row"], row["detail"]) for row in rows]


@pytest.mark.parametrize("fault", JSON_FAULTS, ids=lambda fault: repr(fault[:20]))
def test_a_line_that_is_no_object_is_set_aside_as_it_came(fault: bytes, tmp_path: Path) -> None:
    """With its line and the reason; the lines around it are accepted."""
    accepted, aside = kept(tmp_path, "rows.jsonl", LINE + b"\n\n" + fault + b"\n" + LINE + b"\n")
    assert accepted == 2
    ((number, raw, detail),) = aside
    assert (number, raw) == (1, fault)
    assert detail.startswith("line 3: ")


@pytest.mark.parametrize("fault", CSV_FAULTS, ids=repr)
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_a_record_of_other_fields_is_set_aside_as_it_came(fault: bytes, end: bytes, tmp_path: Path) -> None:
    """Too few, too many, no UTF-8, a quote that is never closed: the records around it are accepted."""
    accepted, aside = kept(tmp_path, "rows.csv", end.join([b"n,s", b"1,a", fault, b'3,"b ""c"""', b"4,d", b""]))
    assert accepted == 3
    ((number, raw, detail),) = aside
    assert (number, raw) == (1, fault)
    assert detail.startswith("line 3: ")


def test_an_open_quote_at_the_end_swallows_no_rows(tmp_path: Path) -> None:
    """A torn text field costs its line, not all that follow."""
    accepted, aside = kept(tmp_path, "rows.csv", b'n,s\n1,"a\n' + b"".join(b"%d,x\n" % n for n in range(1_500)))
    assert accepted == 1_500
    assert [raw for _, raw, _ in aside] == [b'1,"a']


def test_a_text_of_several_lines_stays_one_row(tmp_path: Path) -> None:
    """Beside a torn record, and in a file larger than what is read at once."""
    rows = b"".join(b'%d,"%s\n%s"\n' % (n, b"x" * 500, b"y" * 500) for n in range(3_000))
    assert kept(tmp_path, "rows.csv", b"n,s\n" + rows) == (3_000, [])
    accepted, aside = kept(tmp_path, "rows.csv", b"n,s\n7\n" + rows)
    assert (accepted, [raw for _, raw, _ in aside]) == (3_000, [b"7"])


def test_rows_keep_their_numbers_beside_unread_ones(tmp_path: Path) -> None:
    """What the report, the quarantine and SARIF call row 3 is row 3 of the file."""
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'null\n\n{"n": 1}\n{\n{"n": "bad"}\n')
    outcome = judge_file(path, PROMISED, now_us=0, quarantine=tmp_path / "q")
    samples = {one.rule_id: [sample.row for sample in one.samples] for one in outcome.report.violations}
    assert samples["s_readable"] == [0, 2]
    assert all(rows == [3] for name, rows in samples.items() if name != "s_readable")
    assert lines_of(path, {0, 1, 2, 3}) == {0: 1, 1: 3, 2: 4, 3: 5}
    (tmp_path / "rows.csv").write_bytes(b'n,s\n1,"a\nb"\n\n2,"c\n3,d\n')
    assert lines_of(tmp_path / "rows.csv", {0, 1, 2}) == {0: 2, 1: 5, 2: 6}


def test_reports_are_written_of_a_file_of_torn_lines_alone(tmp_path: Path) -> None:
    """Exit code 1, a failure in JUnit and counts, and no value of a row in any report."""
    (tmp_path / "c.odcs.yaml").write_text(
        "apiVersion: v3.1.0\nkind: DataContract\nid: rows\nversion: 1.0.0\nstatus: active\n"
        "schema:\n- name: rows\n  properties:\n  - {name: n, logicalType: integer, classification: pii}\n"
    )
    (tmp_path / "rows.jsonl").write_text('{"n": 4711\n[4711]\n')
    files = [str(tmp_path / name) for name in ("r.json", "j.xml", "s.json", "r.html")]
    options = [word for pair in zip(("--report", "--junit", "--sarif", "--html"), files, strict=True) for word in pair]
    call = ["contract", "test", str(tmp_path / "rows.jsonl"), "--contract", str(tmp_path / "c.odcs.yaml"), *options]
    result = CliRunner().invoke(app, call)
    assert result.exit_code == 1, result.output
    assert "2 rows: 0 accepted, 2 to quarantine" in result.output
    texts = [result.output, *(Path(file).read_text() for file in files)]
    assert not any("4711" in text for text in texts)
    assert json.loads(texts[1])["quarantined"] == 2
    assert 'failures="1"' in texts[2]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le"])
@pytest.mark.parametrize(("name", "text"), [("rows.csv", "n,s\n1,a\n"), ("rows.jsonl", '{"n": 1}\n{"n": 2}\n')])
def test_a_file_of_another_encoding_is_one_line(encoding: str, name: str, text: str, tmp_path: Path) -> None:
    """Named with what to do, by `contract test` and `contract init` alike; exit code 2."""
    path = tmp_path / name
    path.write_bytes(text.encode(encoding))
    for read in (lambda: judge_file(path, PROMISED, now_us=0), lambda: read_sample(path)):
        with pytest.raises(ForeignData, match="expected UTF-8") as told:
            read()
        assert told.value.exit_code == 2


@pytest.mark.parametrize("data", [b"", b"n,\xff\n1,a\n", b'n,"s\n1,a\n', b"\n\n"])
def test_a_header_that_cannot_be_read_is_one_line(data: bytes, tmp_path: Path) -> None:
    """Without it no row has names."""
    (tmp_path / "rows.csv").write_bytes(data)
    with pytest.raises(ForeignData, match="header"):
        judge_file(tmp_path / "rows.csv", PROMISED, now_us=0)


def test_what_reads_whole_files_names_the_line(tmp_path: Path) -> None:
    """A contract is not inferred from half a file."""
    (tmp_path / "rows.jsonl").write_bytes(LINE + b"\nnull\n")
    with pytest.raises(UnreadableData, match=r"rows\.jsonl: line 2: found null; expected an object"):
        read_sample(tmp_path / "rows.jsonl")
