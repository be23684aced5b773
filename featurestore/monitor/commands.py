"""Which commands say how well the features do?"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featurestore.cli.settings import HERE, Repo
from featurestore.monitor.deployment import AsJson, OneService, between, deployment, print_json
from featurestore.monitor.fallback_commands import fallback
from featurestore.monitor.skew_commands import skew

if TYPE_CHECKING:
    from featurestore.config import Settings
    from featurestore.monitor.status import FeatureHealth
    from featurestore.monitor.workspace import Workspace
    from featurestore.plan import Plan

app = typer.Typer()
app.add_typer(skew, name="skew")
app.add_typer(fallback, name="fallback")

_COLOURS = {"ok": "green", "warn": "yellow", "bad": "red", "unknown": "dim"}


@app.command()
def alerts(
    repo: Repo = HERE,
    *,
    every: Annotated[bool, typer.Option("--all", help="Ended ones too.")] = False,
    json: AsJson = False,
) -> None:
    """List the open alerts, critical ones first. Exit code 1 where one of these is critical."""
    import msgspec
    from rich.table import Table

    from featurestore.clock import iso, system_clock
    from featurestore.monitor.alerts import AlertBook
    from validation.terminal import Console, styled

    settings, place, _ = deployment(repo)
    book = AlertBook(place.alerts, system_clock(settings.clock_offset_us))
    found = book.all() if every else book.open()
    if json:
        print_json(msgspec.to_builtins(found))
    else:
        table = Table("", "what", "detail", "owner", "since", "times", "evidence")
        for alert in found:
            state = alert.finding.severity if alert.is_open else "ended"
            table.add_row(
                styled((state, "red" if state == "critical" else "dim" if state == "ended" else "yellow")),
                alert.finding.title,
                alert.finding.detail,
                alert.finding.owner,
                iso(alert.first_us),
                str(alert.count),
                alert.finding.evidence,
            )
        Console().print(table if found else "no alerts")
    if any(alert.is_open and alert.finding.severity == "critical" for alert in found):
        raise typer.Exit(1)


@app.command()
def status(repo: Repo = HERE, *, service: OneService = None, json: AsJson = False) -> None:
    """Show the health of every feature in one screen, the worst first. Exit code 1 where one is bad."""
    import msgspec
    from rich.padding import Padding
    from rich.text import Text

    from featurestore.cli.looks import NOT_LOOKED_AT
    from validation.terminal import Console, styled

    settings, place, plan = deployment(repo)
    found = _health(settings, place, plan)
    found = [each for each in found if service is None or service in each.services]
    if json:
        print_json(msgspec.to_builtins(found))
    else:
        console = Console(highlight=False)
        for view in dict.fromkeys(each.view for each in found):
            mine = [each for each in found if each.view == view]
            spent = max((each.budget for each in mine if each.budget is not None), default=None)
            facts = [mine[0].owner or "no owner"]
            if compared := sum(each.compared for each in mine):
                facts.append(f"{compared} compared, {sum(sum(each.differing.values()) for each in mine)} differ")
            if spent is not None:
                facts.append(f"{spent:.0%} of the error budget spent")
            console.print(styled((view, f"bold {_COLOURS[mine[0].health]}"), f"  {'; '.join(facts)}"))
            features = [(each.feature, _COLOURS[each.health]) for each in mine]
            console.print(Padding(Text(" ").join(map(styled, features)), (0, 0, 0, 2)))
            for reason in dict.fromkeys(reason for each in mine for reason in each.reasons):
                console.print(Padding(f"! {reason}", (0, 0, 0, 2)))
        counts = {level: sum(each.health == level for each in found) for level in _COLOURS}
        told = [styled((f"{count} {level}", _COLOURS[level])) for level, count in counts.items() if count]
        console.print(Text(", ").join(told))
        console.print(NOT_LOOKED_AT, soft_wrap=True)
    if any(each.health == "bad" for each in found):
        raise typer.Exit(1)


@app.command()
def catalog(
    view: Annotated[str | None, typer.Argument(help="One view; default: all.")] = None,
    repo: Repo = HERE,
    *,
    html: Annotated[Path | None, typer.Option(help="Write one HTML page here.")] = None,
    json: AsJson = False,
) -> None:
    """Show what exists: views, features, owners, contracts and where they are kept, services, health."""
    import msgspec
    from rich.table import Table
    from rich.text import Text

    from featurestore.catalog.entries import entries
    from featurestore.catalog.page import page
    from featurestore.errors import UnknownName
    from validation.terminal import Console, styled

    settings, place, plan = deployment(repo)
    every = entries(plan, _health(settings, place, plan))
    found = [each for each in every if view in (None, each.view)]
    if not found:
        raise UnknownName("view", view or "", [each.view for each in every])
    if html is not None:
        html.write_text(page(plan.project, found), encoding="utf-8")
    if json:
        print_json(msgspec.to_builtins(found))
        return
    table = Table("view", "kind", "keys", "features", "owner", "contract", "kept at", "services")
    for each in found:
        table.add_row(
            each.view,
            each.kind,
            ", ".join(each.keys),
            Text("\n").join(styled((one.name, _COLOURS[one.health]), f" {one.dtype}") for one in each.features),
            each.owner,
            each.contract,
            ", ".join(one.boundary for one in each.kept if one.modes),
            ", ".join(each.services),
        )
    Console().print(table)


@app.command()
def concept(
    labels: Annotated[Path, typer.Argument(help="Parquet file: entity keys, instants, predictions, labels.")],
    service: Annotated[str, typer.Option(help="The feature service whose answers were predicted from.")],
    repo: Repo = HERE,
    *,
    prediction: Annotated[str, typer.Option(help="Column of predictions; probabilities for labels 0 and 1.")],
    label: Annotated[str, typer.Option(help="Column of labels.")],
    timestamp: Annotated[str, typer.Option(help="Column of the instant of each prediction.")] = "event_timestamp",
    key: Annotated[list[str] | None, typer.Option(help="Entity column; default: all of the service's.")] = None,
    segment: Annotated[list[str] | None, typer.Option(help="view:feature to tell apart by; repeatable.")] = None,
    period_h: Annotated[float, typer.Option(min=0.01, help="Length of a period in hours.")] = 24.0,
    most_h: Annotated[float, typer.Option(min=0, help="How old an answer may be at the label's instant.")] = 24.0,
    json: AsJson = False,
) -> None:
    """Say how predictions came true: error and calibration, by segment and over time, from labels that came late."""
    import msgspec
    from rich.table import Table

    from featurestore.clock import iso
    from featurestore.dataset.rebuild import read_entity_rows
    from featurestore.monitor.concept import signals, with_served
    from featurestore.monitor.concept_history import put_signals
    from featurestore.monitor.served import read_served
    from featurestore.offline.entity_rows import instants
    from validation.terminal import Console

    _, place, plan = deployment(repo)
    asked = plan.service(service)
    rows = read_entity_rows(labels)
    segments = segment or []
    if segments:
        at_us, _ = instants(rows[timestamp], place=f"labels, column {timestamp!r}")
        names = key or sorted(
            {each.join_key_map.get(one.name, one.name)
             for each in asked.projections if each.view in plan.views for one in plan.view(each.view).join_keys}
        )  # fmt: skip
        most_us = int(most_h * 3_600_000_000)
        answers = read_served(place.served, int(at_us.min()) - most_us, int(at_us.max()) + 1, service=service)
        rows = with_served(rows, answers, keys=names, timestamp=timestamp, segments=segments, most_us=most_us)
    period_us = int(period_h * 3_600_000_000)
    found = signals(
        rows, prediction=prediction, label=label, timestamp=timestamp, segments=segments, period_us=period_us
    )
    put_signals(place.concept, service, found)
    if json:
        print_json(msgspec.to_builtins(found))
        return
    table = Table("segment", "period", "rows", "bias", "calibration error", "Brier", "MAE", "RMSE")
    for each in found:
        table.add_row(
            ", ".join(f"{name} = {value}" for name, value in each.segment.items()) or "all",
            iso(each.period_us),
            str(each.rows),
            f"{each.bias:+.4f} ± {each.bias_error:.4f}",
            *(
                "" if value is None else f"{value:.4f}"
                for value in (
                    each.calibration_error, each.brier, each.mean_absolute_error, each.root_mean_squared_error
                )
            ),
        )  # fmt: skip
    Console().print(table)


@app.command(name="test-score")
def readiness(
    service: Annotated[str, typer.Argument(help="The feature service of the model.")],
    repo: Repo = HERE,
    *,
    json: AsJson = False,
) -> None:
    """Answer the ML Test Score's data and monitoring tests from evidence, and say what is missing."""
    import msgspec
    from rich.table import Table

    from featurestore.monitor.evidence import evidence_of
    from featurestore.monitor.readiness import score_of
    from validation.terminal import Console

    settings, place, plan = deployment(repo)
    found = score_of(evidence_of(settings, place, plan, service))
    if json:
        print_json(msgspec.to_builtins(found) | {"score": found.score})
        return
    table = Table("", "test", "points", "evidence", "missing")
    for each in found.answers:
        table.add_row(each.test, each.asks, f"{each.points:g}", each.evidence, each.missing)
    console = Console()
    console.print(table)
    console.print(f"data {found.data:g} of 7, monitoring {found.monitoring:g} of 7; score {found.score:g}")


def _budgets(plan: "Plan", place: "Workspace", now_us: int) -> list[Any]:
    from featurestore.monitor.slo import objectives_of
    from featurestore.monitor.slo_history import SloHistory

    measured = SloHistory(place.slo)
    return [measured.budget(each, now_us) for view in plan.views.values() for each in objectives_of(view)]


def _health(settings: "Settings", place: "Workspace", plan: "Plan") -> "list[FeatureHealth]":
    from featurestore.clock import system_clock
    from featurestore.monitor.alerts import AlertBook
    from featurestore.monitor.skew_history import SkewHistory
    from featurestore.monitor.status import health_of
    from validation.violations import ViolationStore

    clock = system_clock(settings.clock_offset_us)
    start_us, end_us = between(settings, None, None)
    return health_of(
        plan,
        audits=SkewHistory(place.skew).between(start_us, end_us),
        budgets=_budgets(plan, place, clock()),
        alerts=AlertBook(place.alerts, clock).open(),
        violations=ViolationStore(place.violations).find(),
    )
