"""Which commands do contracts and quarantine offer?

Every command imports what it runs inside its own body: `featurestore --help` must not wait for it.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from validation.contract_commands import Plan, diff_command, init_command, status_command, violations_command
from validation.drift_commands import drift_app
from validation.folders import CONTRACTS, QUARANTINE, here, place_here
from validation.groups import BROKEN_EXIT, NO_DATA_EXIT, contract_app, quarantine_app
from validation.quarantine_commands import discard_command

if TYPE_CHECKING:
    from validation.contract import Contract
    from validation.verdict import Verdict

app = typer.Typer()
app.add_typer(contract_app, name="contract")
app.add_typer(quarantine_app, name="quarantine")
app.add_typer(drift_app, name="drift")

Contracts = Annotated[Path, typer.Option("--contracts", help="The folder of the contracts.")]
Quarantine = Annotated[Path, typer.Option("--folder", help="The folder of the quarantine, or its address (s3://…).")]
FailOn = Literal["critical", "warning", "info"]

contract_app.command("init")(init_command)
contract_app.command("diff")(diff_command)
contract_app.command("status")(status_command)
contract_app.command("violations")(violations_command)
quarantine_app.command("discard")(discard_command)


@contract_app.command("lint")
def lint_command(
    paths: Annotated[list[Path] | None, typer.Argument(help="Contract files or folders; default: --contracts.")] = None,
    *,
    contracts: Contracts = CONTRACTS,
    plan: Plan = None,
) -> None:
    """Read contracts and say what a reviewer would. Exit code 1 where there is something to say.

    With a plan it names what no view, service or source of a view stands for: nothing but files is judged by it.
    """
    from validation.contract import lint, load_contract_file
    from validation.errors import did_you_mean
    from validation.examples import wrong_examples
    from validation.reach import load_reach

    known = load_reach(plan).sources if plan is not None else None
    remarks = 0
    for path in _contract_files(paths or [here(contracts)]):
        loaded = load_contract_file(path)
        if not loaded:
            remarks += 1
            typer.echo(f"{path}: no schema object: no rows are judged")
        for contract in loaded:
            found = lint(contract) + wrong_examples(contract)
            if known is not None and contract.source not in known:
                found.append(
                    f"{contract.source!r} is no source of a view, no view and no service of the plan: `contract test` "
                    f"alone judges by it; {did_you_mean(contract.source, known)}"
                )
            remarks += len(found)
            told = f"{len(contract.rules)} rules, {len(found)} remarks"
            typer.echo(f"{path}: {contract.source} {contract.version}: {told}")
            for remark in found:
                typer.echo(f"  {remark}")
    if remarks:
        raise typer.Exit(1)


@contract_app.command("test")
def judge_command(
    file: Annotated[Path, typer.Argument(help="A file of rows: .parquet, .csv, .jsonl.")],
    *,
    contract: Annotated[Path | None, typer.Option("--contract", help="The contract file.")] = None,
    source: Annotated[str | None, typer.Option("--source", help="The source whose contract is meant.")] = None,
    contracts: Contracts = CONTRACTS,
    fail_on: Annotated[FailOn, typer.Option("--fail-on", help="The least severity that fails.")] = "warning",
    quarantine: Annotated[
        Path | None, typer.Option("--quarantine", help="Keep rejected rows below this folder.")
    ] = None,
    report: Annotated[Path | None, typer.Option("--report", help="Write the violation report (JSON) here.")] = None,
    html: Annotated[
        Path | None, typer.Option("--html", help="Write the violation report (one HTML page) here.")
    ] = None,
    junit: Annotated[Path | None, typer.Option("--junit", help="Write JUnit XML for a build server here.")] = None,
    sarif: Annotated[Path | None, typer.Option("--sarif", help="Write SARIF for a code host here.")] = None,
    plan: Annotated[Path | None, typer.Option("--plan", help="A plan file: name views and services affected.")] = None,
    sla: Annotated[bool, typer.Option("--sla", help="Judge freshness, latency and volume too, as of now.")] = False,
    violations: Annotated[
        Path | None, typer.Option("--violations", help="Fold the violations into the store below this folder.")
    ] = None,
    data_docs: Annotated[
        Path | None,
        typer.Option("--data-docs", help="Keep suite and verdict in this Great Expectations project, and render it."),
    ] = None,
) -> None:
    """Judge a file by its contract, without any server.

    Exit code 0: the rules hold; 1: the data is bad; 2: the contract or the call is wrong; 3: a check broke; 4: no data.
    """
    import time

    from validation.fallback import great_expectations
    from validation.judging import judge_file
    from validation.junit import junit as junit_of
    from validation.page import page
    from validation.reach import load_reach
    from validation.sarif import lines_of
    from validation.sarif import sarif as sarif_of
    from validation.violations import ViolationStore

    meant = _contract_of(file, contract, source, here(contracts))
    reach = load_reach(plan) if plan is not None else None
    now_us = time.time_ns() // 1000
    outcome = judge_file(
        file, meant, now_us=now_us, quarantine=quarantine, fallback=great_expectations, reach=reach, sla=sla
    )
    if violations is not None:
        ViolationStore(place_here(violations, os.environ)).record(outcome.report)
    if report is not None:
        report.write_bytes(outcome.report.encode())
    if html is not None:
        html.write_bytes(page(outcome.report))
    if junit is not None:
        junit.write_bytes(junit_of(outcome.verdict, outcome.report, fail_on=fail_on))
    if sarif is not None:
        rows = {sample.row for violation in outcome.report.violations for sample in violation.samples}
        sarif.write_bytes(sarif_of(outcome.report, uri=file.as_posix(), lines=lines_of(file, rows)))
    for line in outcome.lines:
        typer.echo(line)
    if data_docs is not None:
        from validation.data_docs import DataDocs  # takes seconds: the library itself

        docs = DataDocs(data_docs)
        docs.add_suite(meant)
        run = outcome.report.report_id
        docs.add_verdict(meant.at("producer"), outcome.verdict, run=run, origin=file.name, now_us=now_us)
        typer.echo(f"Data Docs: {docs.render()}")
    raise typer.Exit(_exit_code(outcome.verdict, fail_on))


@contract_app.command("export")
def export_command(
    path: Annotated[Path, typer.Argument(help="A contract file, or a folder of them.")],
    *,
    to: Annotated[Literal["great-expectations", "data-docs"], typer.Option("--to", help="The form to export to.")],
    output: Annotated[
        Path | None, typer.Option("--output", help="The Great Expectations project of data-docs.")
    ] = None,
) -> None:
    """Print a contract as a Great Expectations suite (JSON), or render suites as its Data Docs."""
    import json

    from validation.contract import load_contract_file
    from validation.errors import ContractError
    from validation.suite import suite_of

    contracts = [contract for file in _contract_files([path]) for contract in load_contract_file(file)]
    if to == "great-expectations":
        for contract in contracts:
            typer.echo(json.dumps(suite_of(contract).to_json_dict(), indent=2, ensure_ascii=False))
        return
    if output is None:
        raise ContractError("--to data-docs needs --output FOLDER, the project to render")
    from validation.data_docs import DataDocs

    docs = DataDocs(output)
    for contract in contracts:
        docs.add_suite(contract)
    typer.echo(f"Data Docs: {docs.render()}")


@quarantine_app.command("list")
def list_command(
    source: Annotated[str | None, typer.Argument(help="One source; default: all.")] = None,
    *,
    folder: Quarantine = QUARANTINE,
) -> None:
    """Count what lies in quarantine and was neither replayed nor discarded, by source, contract version and reason."""
    from rich.table import Table

    from validation.instant import iso
    from validation.quarantine import summaries
    from validation.replay import open_rows
    from validation.terminal import Console

    place = place_here(folder, os.environ)
    found = summaries(open_rows(place, source))
    if not found:
        typer.echo(f"{place}: nothing is in quarantine")
        return
    shown = Table("rows", "source", "contract", "reason", "first arrival", "last arrival")
    for one in found:
        times = ["" if at is None else iso(at) for at in (one.first_us, one.last_us)]
        contract = f"{one.contract} {one.contract_version}".strip()
        shown.add_row(str(one.rows), one.source, contract, one.reason, *times)
    Console(width=None if Console().is_terminal else 200).print(shown)


@quarantine_app.command("show")
def show_command(
    source: Annotated[str, typer.Argument(help="The source.")],
    *,
    folder: Quarantine = QUARANTINE,
    rule: Annotated[str | None, typer.Option("--rule", help="Only rows that broke this rule.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="How many rows at most.")] = 20,
) -> None:
    """Print rows in quarantine whole, one JSON object a line, with reason and origin. They may hold personal data."""
    import msgspec

    from validation.replay import open_rows

    shown = 0
    for row in open_rows(place_here(folder, os.environ), source).to_pylist():
        if shown == limit:
            break
        if rule is None or rule in row["rule_ids"]:
            text = row.pop("row").decode("utf-8", "backslashreplace")
            row["key"] = None if row["key"] is None else row["key"].decode("utf-8", "backslashreplace")
            typer.echo(msgspec.json.encode({**row, "row": text}).decode())
            shown += 1
    if not shown:
        typer.echo(f"{source}: no row in quarantine" + (f" broke rule {rule!r}" if rule else ""), err=True)


def _contract_files(paths: list[Path]) -> list[Path]:
    from validation.errors import ContractError

    files: list[Path] = []
    for path in paths:
        found = sorted(path.glob("*.odcs.yaml")) if path.is_dir() else [path]
        if not found:
            raise ContractError(f"{path}: no contract (*.odcs.yaml) in this folder")
        files += found
    return files


def _contract_of(file: Path, contract: Path | None, source: str | None, contracts: Path) -> "Contract":
    """The contract that is meant: the file named, else that of the source named, else of the data file's name."""
    from validation.contract import load_contract, load_contract_file, load_contracts
    from validation.errors import ContractError, did_you_mean

    if contract is not None:
        about = [one.source for one in load_contract_file(contract)]
        named = file.name.split(".")[0]
        return load_contract(contract, source or (named if len(about) > 1 and named in about else None))
    known = load_contracts(contracts)
    wanted = source or file.name.split(".")[0]
    if wanted not in known:
        raise ContractError(
            f"{contracts}: no contract of source {wanted!r}; {did_you_mean(wanted, known)}; or --contract"
        )
    return known[wanted]


def _exit_code(verdict: "Verdict", fail_on: FailOn) -> int:
    severities = ("critical", "warning", "info")
    counted = severities[: severities.index(fail_on) + 1]
    found = {rule.outcome for rule in verdict.rules if rule.severity in counted}
    if "broken" in found:
        return BROKEN_EXIT
    if "failed" in found:
        return 1
    return NO_DATA_EXIT if verdict.rows == 0 else 0
