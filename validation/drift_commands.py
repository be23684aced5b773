"""How are profiles made and compared from the command line?

As in `validation.commands`, every command imports what it runs inside its own body.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from validation.folders import CONTRACTS, PLAN, PROFILES, here

if TYPE_CHECKING:
    from collections.abc import Sequence

    from validation.drift.compare import DriftReport
    from validation.drift.multivariate import RowTest
    from validation.drift.rows import Rows
    from validation.profile.baseline import Baseline

DRIFT_EXIT = 1
NO_DATA_EXIT = 4

drift_app = typer.Typer(help="Drift: do values look like those the model was trained on?", no_args_is_help=True)

Profiles = Annotated[Path, typer.Option("--profiles", help="The folder of the profiles.")]
Features = Annotated[list[str] | None, typer.Option("--feature", help="A feature; repeatable; default: all columns.")]
Categorical = Annotated[
    list[str] | None, typer.Option("--categorical", help="A number that is a code, not a quantity; repeatable.")
]
Segments = Annotated[list[str] | None, typer.Option("--segment", help="A column whose values are cohorts; repeatable.")]
Entities = Annotated[
    list[str] | None,
    typer.Option("--entity", help="A column that says whose a row is; repeatable; default: the plan's join keys."),
]
LeaveOut = Annotated[list[str] | None, typer.Option("--leave-out", help="A column that is no feature; repeatable.")]
Time = Annotated[str | None, typer.Option("--time", help="The column of instants; a training set knows its own.")]


@drift_app.command("profile")
def profile_command(
    data: Annotated[str, typer.Argument(help="A file, a folder, a training set, or the name of a source of the plan.")],
    *,
    boundary: Annotated[str, typer.Option("--boundary", help="Where these rows were seen.")] = "source",
    reference: Annotated[
        str | None, typer.Option("--reference", help="Rows that fix the baseline; default: these rows themselves.")
    ] = None,
    baseline: Annotated[str | None, typer.Option("--baseline", help="The id of a baseline that exists.")] = None,
    source_id: Annotated[
        str | None, typer.Option("--source-id", help="What these rows are called; default: the data's digest.")
    ] = None,
    feature: Features = None,
    categorical: Categorical = None,
    segment: Segments = None,
    entity: Entities = None,
    leave_out: LeaveOut = None,
    time: Time = None,
    profiles: Profiles = PROFILES,
    plan: Annotated[Path, typer.Option("--plan", help="The plan file that knows sources by name.")] = PLAN,
) -> None:
    """Profile rows by feature, segment and hour, and keep the profiles. The same rows again change nothing."""
    from validation.drift.columns import chosen_columns, refuse_differing
    from validation.drift.compare import DriftError
    from validation.profile.baseline import baseline_of, unprofiled_of
    from validation.profile.build import profile_table
    from validation.profile.store import ProfileStore
    from validation.reach import column_roles

    store = ProfileStore(here(profiles))
    rows = _rows(data, here(plan))
    if baseline is not None and reference is not None:
        raise DriftError("--baseline and --reference exclude each other: a baseline is made of one reference")
    instants = time or rows.timestamp_column
    known = _rows(reference, here(plan)) if reference is not None else rows
    refuse_differing((known, rows), feature or ())
    chosen = chosen_columns(
        (known, rows), column_roles(here(plan)), leave_out or (), entity, time=instants, segments=segment or ()
    )
    if baseline is not None:
        fixed = store.baseline(baseline)
    else:
        left_out = set() if feature else {*chosen.left_out, *(segment or ()), instants}
        kept = known.table.select([name for name in known.table.column_names if name not in left_out])
        fixed = baseline_of(kept, features=feature, categorical=categorical or ())
        if feature is None:
            _tell_left_out([*chosen.reasons, *unprofiled_of(kept)])
    made = profile_table(
        rows.table,
        fixed,
        boundary=boundary,
        time_column=instants,
        segments=segment or (),
        every_cohort=False,
        entities=chosen.entities,
    )
    name = source_id or _digest(rows.table)
    path = store.put(name, made, boundary=boundary, baseline=fixed)
    typer.echo(
        f"{path}: {rows.table.num_rows} rows, {len(fixed.features)} features, {len(made)} profiles, baseline {fixed.id}"
    )


@drift_app.command("window")
def window_command(
    name: Annotated[str, typer.Argument(help="The name.")],
    window: Annotated[str, typer.Argument(help="BOUNDARY@START/END, the end excluded.")],
    *,
    baseline: Annotated[str, typer.Option("--baseline", help="The baseline's id, where there are several.")] = "",
    profiles: Profiles = PROFILES,
) -> None:
    """Give a window of profiles a name, to be a reference: `drift check --reference window:NAME`."""
    import msgspec

    from validation.drift.windows import name_window, parse_window
    from validation.profile.store import ProfileStore

    store = ProfileStore(here(profiles))
    meant = msgspec.structs.replace(parse_window(window, store), baseline=baseline)
    name_window(store, name, meant)
    typer.echo(f"window:{name} is {meant.text}")


@drift_app.command("check")
def check_command(
    *,
    reference: Annotated[
        str, typer.Option("--reference", help="A training set, file, folder, source, or window (see docs/drift.md).")
    ],
    current: Annotated[str, typer.Option("--current", help="The same, to be compared with it.")],
    feature: Features = None,
    categorical: Categorical = None,
    segment: Segments = None,
    entity: Entities = None,
    leave_out: LeaveOut = None,
    time: Time = None,
    block_hours: Annotated[
        float | None,
        typer.Option("--block-hours", help="Rows within so many hours may depend on each other; needs --time."),
    ] = None,
    family_rate: Annotated[
        float, typer.Option("--family-rate", help="The share of comparisons without drift that may alarm.")
    ] = 0.05,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the null windows.")] = 0,
    rows: Annotated[bool, typer.Option("--rows", help="Test whole rows too: classifier, MMD, PCA.")] = False,
    model: Annotated[
        str | None, typer.Option("--model", help="module:function that gives a table's outputs: tested like a feature.")
    ] = None,
    profiles: Profiles = PROFILES,
    baseline: Annotated[str, typer.Option("--baseline", help="The baseline's id, where there are several.")] = "",
    plan: Annotated[Path, typer.Option("--plan", help="The plan file that knows sources by name.")] = PLAN,
    as_json: Annotated[Path | None, typer.Option("--json", help="Write the report (JSON) here.")] = None,
    html: Annotated[Path | None, typer.Option("--html", help="Write the report (one HTML page) here.")] = None,
) -> None:
    """Compare current rows with a reference; features are told by the strength of their drift.

    Exit code 0: no drift; 1: drift; 2: the call is wrong; 4: no data.
    """
    import msgspec

    from validation.drift.page import calibration_line, few, page
    from validation.drift.windows import is_window

    if is_window(reference) or is_window(current):
        report, tests = _check_windows(
            reference,
            current,
            here(profiles),
            baseline,
            here(plan),
            time,
            segment or [],
            block_hours,
            family_rate,
            seed,
            feature=feature,
            entity=entity,
            leave_out=leave_out or [],
        )
    else:
        report, tests = _check_rows(
            reference,
            current,
            here(plan),
            {"features": feature, "categorical": categorical or (), "segments": segment or ()},
            time,
            block_hours,
            family_rate,
            seed,
            rows=rows,
            model=model,
            entity=entity,
            leave_out=leave_out or [],
        )
    if as_json is not None:
        told = msgspec.to_builtins(report) | {"rows": msgspec.to_builtins(tests)}
        as_json.write_bytes(msgspec.json.format(msgspec.json.encode(told), indent=2))
    if html is not None:
        html.write_bytes(page(report, tests))
    for finding in report.findings:
        where = f" [{finding.segment}]" if finding.segment else ""
        size = next((one.effect for one in finding.measures if one.name == finding.effect), 0.0)
        new = f"; new: {', '.join(finding.new)}" if finding.new else ""
        rows_of = f"; {finding.rows_current:,} rows count as {finding.counted_current:,.0f}" if few(finding) else ""
        typer.echo(
            f"{finding.verdict}: {finding.feature}{where}: {finding.effect} {size:.3g}, q {finding.q:.3g}{new}{rows_of}"
        )
    for one in tests:
        typer.echo(f"{'drift' if one.drifted else 'none'}: rows, {one.name}: {one.detail}, q {one.q:.3g}")
    typer.echo(calibration_line(report))
    for warning in report.warnings:
        typer.echo(f"warning: {warning}")
    _tell_left_out(report.left_out)
    if all(finding.verdict == "no data" for finding in report.findings):
        raise typer.Exit(NO_DATA_EXIT)
    if report.drifted or any(one.drifted for one in tests):
        raise typer.Exit(DRIFT_EXIT)


def _tell_left_out(reasons: "Sequence[str]") -> None:
    if reasons:
        typer.echo(f"left out: {', '.join(reasons)}; name columns with --feature to look at them")


def _check_rows(
    reference: str,
    current: str,
    plan: Path,
    chosen: dict[str, Any],
    time: str | None,
    block_hours: float | None,
    family_rate: float,
    seed: int,
    *,
    rows: bool,
    model: str | None,
    entity: "Sequence[str] | None",
    leave_out: "Sequence[str]",
) -> "tuple[DriftReport, tuple[RowTest, ...]]":
    from validation.drift.columns import chosen_columns, refuse_differing
    from validation.drift.compare import compare_tables
    from validation.drift.multivariate import judge_rows
    from validation.drift.repeats import most_repeated, owners_of
    from validation.drift.rows import blocks_of, with_outputs
    from validation.profile.baseline import baseline_of
    from validation.reach import column_roles

    sides = [_rows(text, plan) for text in (reference, current)]
    refuse_differing(sides, chosen["features"] or ())
    tables = [side.table for side in sides]
    if model is not None:
        tables = [with_outputs(table, model) for table in tables]
        if chosen["features"]:
            chosen = {**chosen, "features": [*chosen["features"], "model_output"]}
    instants = time or sides[0].timestamp_column
    known = chosen_columns(sides, column_roles(plan), leave_out, entity, time=instants, segments=chosen["segments"])
    # Of join keys that nobody named the one that repeats most: features of it are alike in most rows.
    entities = known.entities if entity else most_repeated(tables[1], known.entities)
    reasons: tuple[str, ...] = ()
    if chosen["features"] is None:
        reasons = known.reasons
        unused = known.unused(entities)
        tables = [table.select([name for name in table.column_names if name not in unused]) for table in tables]
    # Features and whole rows are two families: each may alarm at half the rate.
    rate = family_rate / 2 if rows else family_rate
    report = compare_tables(
        tables[0],
        tables[1],
        seed=seed,
        **chosen,
        time_column=instants,
        entities=entities,
        block_hours=block_hours,
        family_rate=rate,
        names=(sides[0].name, sides[1].name),
        left_out=reasons,
    )
    if not rows:
        return report, ()
    left_out = {*chosen["segments"], instants, *(() if chosen["features"] else entities)}
    kept = [name for name in tables[0].column_names if name not in left_out]
    fixed = baseline_of(tables[0].select(kept), features=chosen["features"], categorical=chosen["categorical"])
    blocks: list[Any] = [None, None]
    if block_hours is not None and instants is not None:
        blocks = [blocks_of(table, instants, round(block_hours * 3_600_000_000)) for table in tables]
    return report, judge_rows(
        tables[0],
        tables[1],
        fixed,
        seed=seed,
        rate=rate,
        reference_blocks=blocks[0],
        current_blocks=blocks[1],
        owners=owners_of(tables[0], tables[1], entities=entities, features=fixed.features),
    )


def _check_windows(
    reference: str,
    current: str,
    profiles: Path,
    baseline: str,
    plan: Path,
    time: str | None,
    segments: list[str],
    block_hours: float | None,
    family_rate: float,
    seed: int,
    *,
    feature: "Sequence[str] | None",
    entity: "Sequence[str] | None",
    leave_out: "Sequence[str]",
) -> "tuple[DriftReport, tuple[RowTest, ...]]":
    import msgspec

    from validation.drift.compare import DriftError, compare
    from validation.drift.windows import baseline_of_window, is_window, parse_window, past_profiles, profiles_in
    from validation.profile.store import ProfileStore
    from validation.reach import column_roles

    store = ProfileStore(profiles)
    meant = {
        text: msgspec.structs.replace(parsed, baseline=baseline or parsed.baseline)
        for text in (reference, current)
        if is_window(text) and not text.startswith("past:")
        for parsed in [parse_window(text, store)]
    }
    if not meant or (reference.startswith("past:") and current not in meant):
        raise DriftError("past:WEEKS is a reference of a current window: --current BOUNDARY@START/END")
    fixed = baseline_of_window(store, next(iter(meant.values())))
    sides = []
    for text in (reference, current):
        found = past_profiles(text, store, meant[current], fixed) if text.startswith("past:") else None
        if found is None and text in meant:
            found = profiles_in(store, meant[text], fixed)
        sides.append(found if found is not None else _profiled(text, plan, fixed, time, segments, entity))
    roles = column_roles(plan) | dict.fromkeys(leave_out, "as asked")
    known = [one.name for one in fixed.features]
    for name in feature or ():
        fixed.feature(name)  # raises with the names that exist
    looked_at = set(feature or (name for name in known if name not in roles))
    sides = [[profile for profile in side if profile.feature in looked_at] for side in sides]
    report = compare(
        sides[0],
        sides[1],
        fixed,
        seed=seed,
        family_rate=family_rate,
        block_hours=block_hours,
        names=(reference, current),
        left_out=[] if feature else [f"{name} ({roles[name]})" for name in known if name in roles],
    )
    return report, ()


def _profiled(
    text: str, plan: Path, fixed: "Baseline", time: str | None, segments: list[str], entity: "Sequence[str] | None"
) -> Any:
    """Rows on the other side of a window, profiled on its baseline."""
    from validation.drift.columns import chosen_columns
    from validation.profile.build import profile_table
    from validation.profile.entities import EVERY
    from validation.reach import column_roles

    rows = _rows(text, plan)
    instants = time or rows.timestamp_column
    known = chosen_columns((rows,), column_roles(plan), (), entity, time=instants, segments=segments)
    return profile_table(
        rows.table,
        fixed,
        time_column=instants,
        segments=segments,
        entities=known.entities,
        most_entities=EVERY,
    )


def _rows(text: str, plan: Path) -> "Rows":
    """The rows that a path names, or the plan's source of that name."""
    from validation.drift.compare import DriftError
    from validation.drift.rows import rows_of
    from validation.reach import source_paths

    if Path(text).exists() or not plan.exists():
        return rows_of(Path(text))
    # Relative paths of a plan start at the feature repo, where the contracts lie too.
    known = source_paths(plan, here(CONTRACTS).parent)
    if text not in known:
        from validation.errors import did_you_mean

        raise DriftError(f"{text}: no such file, and no source of {plan}; {did_you_mean(text, known)}")
    return rows_of(known[text])


def _digest(table: Any) -> str:
    """A name for rows that the same rows have again."""
    import hashlib

    import pyarrow as pa

    hashed = hashlib.sha256()
    with pa.ipc.new_stream(pa.PythonFile(_Into(hashed), "w"), table.schema) as stream:
        stream.write_table(table.combine_chunks(), max_chunksize=65_536)
    return hashed.hexdigest()[:32]


class _Into:
    """A file that hashes what is written to it."""

    closed = False

    def __init__(self, hashed: Any) -> None:
        self._hashed, self._size = hashed, 0

    def write(self, data: Any) -> int:
        """Hashes the bytes."""
        self._hashed.update(data)
        self._size += len(data)
        return len(data)

    def tell(self) -> int:
        """How much was written."""
        return self._size

    def flush(self) -> None:
        """Nothing waits."""

    def close(self) -> None:
        """Nothing is open."""
