"""Do Great Expectations' own tools read what we say? They load our verdicts and render their pages from them."""

import re
from pathlib import Path

import great_expectations as gx
import pyarrow as pa
import pytest
from great_expectations.core.expectation_validation_result import ExpectationSuiteValidationResult
from great_expectations.render.renderer import ValidationResultsPageRenderer
from great_expectations.render.view import DefaultJinjaPageView

from featurestore.cli.main import main
from validation.compiled.batch import compile_batch
from validation.data_docs import DataDocs
from validation.report import MASK
from validation.suite import suite_of
from validation.testing import ORDERS

pytestmark = pytest.mark.filterwarnings("ignore")

AT = pa.array([0, 1, 2], pa.timestamp("us", "UTC"))
BAD = pa.table({"id": ["geheim1", "b", None], "amount": [1.0, -4.5, -2.0], "at": AT})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with two runs: bad data, and a batch whose column is gone."""
    where = tmp_path_factory.mktemp("docs")
    docs = DataDocs(where)
    docs.add_suite(ORDERS)
    for run, table in (("bad", BAD), ("broken", BAD.drop_columns(["amount"]))):
        docs.add_verdict(ORDERS, compile_batch(ORDERS).run(table), run=run, origin="orders.csv", now_us=1_000_000)
    docs.render()
    return where


def results(folder: Path) -> dict[str, ExpectationSuiteValidationResult]:
    """What the library reads back, by run."""
    store = gx.get_context(mode="file", project_root_dir=str(folder)).validation_results_store
    return {key.run_id.run_name: store.get(key) for key in store.list_keys()}


def test_the_library_reads_our_verdicts_as_its_own(folder: Path) -> None:
    """Genuine result objects with counts, rule ids, severities and statistics; the suite is there too."""
    bad = results(folder)["bad"]
    assert isinstance(bad, ExpectationSuiteValidationResult)
    assert bad.statistics["unsuccessful_expectations"] == 2
    told = {result.expectation_config.meta["rule_id"]: result for result in bad.results}
    positive = told["positive"]
    assert (positive.success, positive.result["element_count"], positive.result["unexpected_count"]) == (False, 3, 2)
    assert positive.result["partial_unexpected_list"] == [-4.5, -2.0]
    assert positive.expectation_config.severity == "critical"
    suite = gx.get_context(mode="file", project_root_dir=str(folder)).suites.get("orders")
    assert [one.configuration.kwargs for one in suite.expectations] == [
        one.configuration.kwargs for one in suite_of(ORDERS).expectations
    ]


def test_a_broken_check_is_an_exception_there(folder: Path) -> None:
    """Not a failure of the data: the library shows what it says of checks that it could not make."""
    broken = results(folder)["broken"]
    info = next(r for r in broken.results if r.expectation_config.meta["rule_id"] == "positive").exception_info
    assert info["raised_exception"]
    assert "no column 'amount'" in info["exception_message"]


def test_the_library_renders_its_pages_from_our_verdicts(folder: Path) -> None:
    """Data Docs has a page for the suite and for each run; its own renderer makes one of a loaded result."""
    site = folder / "gx" / "uncommitted" / "data_docs" / "local_site"
    pages = {path.relative_to(site).parts[0]: path for path in site.rglob("*.html")}
    assert {"index.html", "expectations", "validations"} == set(pages)
    runs = [path.read_text() for path in (site / "validations").rglob("*.html")]
    assert len(runs) == 2
    assert any("-4.5" in page for page in runs)
    loaded = results(folder)["bad"]
    page = DefaultJinjaPageView().render(ValidationResultsPageRenderer().render(loaded))
    assert re.search(r"2 unexpected values found", page)


def test_personal_values_are_in_no_file(folder: Path) -> None:
    """Samples of a column that is classified are masked before the library sees them."""
    texts = [path.read_text(errors="ignore") for path in folder.rglob("*") if path.suffix in {".json", ".html"}]
    assert not any("geheim1" in text for text in texts)
    assert any(MASK in text for text in texts)


def test_commands_keep_verdicts_and_suites(tmp_path: Path) -> None:
    """`contract test --data-docs` and `contract export --to data-docs` write into the same project."""
    contract, data, docs = tmp_path / "orders.odcs.yaml", tmp_path / "orders.jsonl", tmp_path / "docs"
    contract.write_text(
        "apiVersion: v3.1.0\nkind: DataContract\nid: orders\nversion: 1.0.0\nstatus: active\nschema:\n"
        "  - name: orders\n    properties:\n      - name: amount\n        logicalType: number\n        quality:\n"
        "          - {id: present, metric: nullValues, mustBe: 0}\n"
    )
    data.write_text('{"amount": 1.5}\n{"amount": null}\n')
    assert main(["contract", "export", str(contract), "--to", "data-docs", "--output", str(docs)]) == 0
    assert main(["contract", "test", str(data), "--contract", str(contract), "--data-docs", str(docs)]) == 1
    (result,) = results(docs).values()
    assert result.results[0].result["unexpected_count"] == 1
    site = docs / "gx" / "uncommitted" / "data_docs" / "local_site"
    assert (site / "expectations" / "orders.html").exists()
