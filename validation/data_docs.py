"""How do Great Expectations' own tools read our verdicts? From a project folder of theirs, Data Docs included.

The folder is what `great_expectations.get_context(mode="file")` opens: expectations, validation results, and a site
that the library renders from them. A verdict of any engine goes in as the library's own result object, masked.
"""

import datetime as dt
from pathlib import Path

import great_expectations as gx
from great_expectations.core.run_identifier import RunIdentifier
from great_expectations.data_context.types.resource_identifiers import (
    ExpectationSuiteIdentifier,
    ValidationResultIdentifier,
)

from validation.contract import Contract
from validation.report import masked
from validation.suite import ResultForm, suite_of
from validation.verdict import Verdict

_SITE = "local_site"


class DataDocs:
    """A project of Great Expectations in a folder; `folder` is made where there is none."""

    def __init__(self, folder: Path) -> None:
        self._context = gx.get_context(mode="file", project_root_dir=str(folder))
        self._context.enable_analytics(enable=False)
        self._context.variables.progress_bars = {"globally": False}

    def add_suite(self, contract: Contract) -> None:
        """Keeps the contract's suite; of two versions the later one given."""
        self._context.suites.add_or_update(suite_of(contract))

    def add_verdict(self, contract: Contract, verdict: Verdict, *, run: str, origin: str, now_us: int) -> None:
        """Keeps the verdict on a batch from `origin`; `run` names when and why it was judged."""
        when = dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(microseconds=now_us)
        key = ValidationResultIdentifier(
            expectation_suite_identifier=ExpectationSuiteIdentifier(contract.name),
            run_id=RunIdentifier(run_name=run, run_time=when),
            batch_identifier=origin,
        )
        self._context.validation_results_store.set(key, ResultForm(contract).of(masked(verdict, contract)))

    def render(self) -> Path:
        """Has the library render its site anew; the index page."""
        (address,) = self._context.build_data_docs(site_names=[_SITE]).values()
        return Path(address.removeprefix("file://"))
