"""`featurestore dataset`: which commands make, check and list training sets?"""

from pathlib import Path
from typing import Annotated

import typer

from featurestore.cli.settings import HERE, Repo, settings_of

app = typer.Typer(help="Training sets that can be rebuilt and verified.", no_args_is_help=True)

FOLDER = "datasets"
Name = Annotated[str, typer.Argument(help="Name of the training set.")]


@app.command()
def build(
    name: Name,
    entity_rows: Annotated[Path, typer.Option(help="Parquet file of entity rows: keys, instants, labels, …")],
    repo: Repo = HERE,
    *,
    service: Annotated[str | None, typer.Option(help="Feature service whose features to join.")] = None,
    feature: Annotated[list[str] | None, typer.Option(help="A feature reference view:feature; repeatable.")] = None,
    timestamp: Annotated[str, typer.Option(help="The entity rows' instant.")] = "event_timestamp",
    as_known: Annotated[bool, typer.Option("--as-known", help="Only what had been created by each instant.")] = False,
    full_feature_names: Annotated[bool, typer.Option("--full-feature-names", help="view__feature columns.")] = False,
    split_time: Annotated[str | None, typer.Option(help="Rows at or after this instant (ISO 8601) are test.")] = None,
    split_entities: Annotated[float | None, typer.Option(help="Share of entities in train, by hash.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the entity hash.")] = 0,
) -> None:
    """Build a point-in-time-correct training set: Parquet parts and a manifest that pins every input."""
    from rich.progress import Progress
    from rich.table import Table

    from featurestore.clock import parse_instant, system_clock
    from featurestore.dataset.build import Request, resolve
    from featurestore.dataset.build import build as make
    from featurestore.dataset.manifest import Split
    from featurestore.dataset.rebuild import entity_columns, limits_of, read_entity_rows, retriever
    from featurestore.errors import UsageError
    from featurestore.plan import used_views
    from featurestore.plan_store import load_plan_file
    from validation.fallback import great_expectations
    from validation.terminal import Console
    from validation.violations import ViolationStore

    if bool(service) == bool(feature):
        raise UsageError("name what to join: either --service or one --feature or more")
    settings = settings_of(repo)
    plan = load_plan_file(settings.plan_path)
    request = Request(
        name=name,
        features=(f"service:{service}",) if service else tuple(feature or ()),
        split=Split(
            cutoff_us=parse_instant(split_time) if split_time else None, entity_fraction=split_entities, seed=seed
        ),
        as_known=as_known,
        full_feature_names=full_feature_names,
        timestamp_column=timestamp,
    )
    limits = limits_of(settings.offline)
    projections = resolve(plan, request.features)
    views = used_views(plan, projections)
    with Progress(transient=True) as progress:
        bar = progress.add_task("joining", total=len(views))
        manifest = make(
            request,
            read_entity_rows(entity_rows, limits, needed=entity_columns(plan, projections, timestamp)),
            plan=plan,
            repo=settings.repo,
            folder=settings.data_dir / FOLDER,
            retrieve=retriever(
                plan,
                settings.repo,
                timestamp,
                limits=limits,
                on_view=lambda view: progress.update(bar, advance=1, description=f"joined {view}"),
                on_share=lambda view, share: progress.update(bar, description=f"joining {view}: {share:.0%}"),
            ),
            clock=system_clock(settings.clock_offset_us),
            fallback=great_expectations,
            violations=ViolationStore(settings.violations),
        )
    table = Table("part", "rows", "digest", title=f"training set {name}")
    for part in manifest.parts:
        table.add_row(part.name, f"{part.rows:,}", part.digest[:16])
    console = Console()
    console.print(table)
    for verdict in manifest.contracts or ():
        failed = [rule.rule_id for rule in verdict.rules if rule.outcome in {"failed", "broken"}]
        console.print(f"contract {verdict.contract} {verdict.version}: {verdict.outcome} {', '.join(failed)}".rstrip())
    if manifest.quarantined:
        console.print(f"{manifest.quarantined} rows were taken out and are in quarantine")


@app.command()
def verify(name: Name, repo: Repo = HERE) -> None:
    """Build and judge the set again from its pinned inputs; exit code 1 where it differs, naming what changed."""
    from featurestore.dataset.build import verify as check
    from featurestore.dataset.manifest import read_manifest, set_folder
    from featurestore.dataset.rebuild import limits_of, retriever
    from featurestore.plan_store import load_plan_file
    from validation.fallback import great_expectations
    from validation.terminal import Console

    settings = settings_of(repo)
    plan = load_plan_file(settings.plan_path)
    folder = set_folder(settings.data_dir / FOLDER, name)
    timestamp = read_manifest(folder).timestamp_column
    retrieve = retriever(plan, settings.repo, timestamp, limits=limits_of(settings.offline))
    verdict = check(folder, plan=plan, repo=settings.repo, retrieve=retrieve, fallback=great_expectations)
    console = Console()
    for line in verdict.changed:
        console.print(line)
    console.print("equal" if verdict.equal else "not equal")
    if not verdict.equal:
        raise typer.Exit(1)


@app.command("list")
def list_sets(repo: Repo = HERE) -> None:
    """List the training sets of this project."""
    from rich.table import Table

    from featurestore.clock import iso
    from featurestore.dataset.manifest import manifests
    from validation.terminal import Console

    table = Table("name", "built", "features", "rows", "plan")
    for manifest in manifests(settings_of(repo).data_dir / FOLDER):
        rows = " + ".join(f"{part.rows:,} {part.name}" for part in manifest.parts)
        features = ", ".join(manifest.features[:3]) + (" …" if len(manifest.features) > 3 else "")
        table.add_row(manifest.name, iso(manifest.created_us), features, rows, str(manifest.plan_version))
    Console().print(table)


@app.command()
def show(name: Name, repo: Repo = HERE) -> None:
    """Show a set's manifest: inputs, split, columns with their nulls, what contracts said, digests."""
    import msgspec

    from featurestore.dataset.manifest import read_manifest, set_folder

    manifest = read_manifest(set_folder(settings_of(repo).data_dir / FOLDER, name))
    typer.echo(msgspec.json.format(msgspec.json.encode(manifest), indent=2).decode())
