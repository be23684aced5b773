"""How is a view's parity asked for on the command line?"""

from typing import Annotated

import typer

from featurestore.cli.settings import HERE, Repo, settings_of


def verify(
    view: Annotated[str, typer.Argument(help="A windowed view; with --online, any.")],
    repo: Repo = HERE,
    *,
    keys: Annotated[int, typer.Option(min=1, help="Entity keys drawn from the history.")] = 40,
    instants: Annotated[int, typer.Option(min=1, help="Instants drawn for each key.")] = 12,
    seed: Annotated[int, typer.Option(help="Which keys and instants are drawn.")] = 0,
    online: Annotated[
        bool,
        typer.Option(
            "--online",
            help="Also look at all that is stored of the view, and compare what the live online store serves now; it "
            "must be current.",
        ),
    ] = False,
    online_keys: Annotated[
        int, typer.Option(min=1, help="Entity keys whose served values are compared, of those that there are.")
    ] = 5_000,
) -> None:
    """Prove on a view's own history that definition, offline join, tiles and reader give the same bits.

    Instants lie on and around the edges of events, hops, windows, tiles and blocks. Nothing needs to run: tiles are
    made in a store of this command's own. With --online a view of latest values is compared too. Exit code 1 where a
    value differs, or something stored is not as it was written.
    """
    import tempfile
    from pathlib import Path

    from featurestore.clock import system_clock
    from featurestore.config import OnlineSettings
    from featurestore.online.connection import connect
    from featurestore.online.server import EmbeddedServer
    from featurestore.plan_store import load_plan_file
    from streaming.commit import ShardStore
    from streaming.integrity import examine_event_log, examine_store
    from streaming.verify import Verified, lines, verify_online
    from streaming.verify import verify as compare
    from streaming.verify_latest import verify_latest_online
    from validation.terminal import Console

    settings = settings_of(repo)
    plan = load_plan_file(settings.plan_path)
    wanted = plan.view(view)
    console = Console(soft_wrap=True, highlight=False)
    damage = 0
    if online:
        live = connect(settings.online, settings.data_dir, start=False)
        clock = system_clock(settings.clock_offset_us)
        topic = wanted.source.topic
        logged = examine_event_log(settings.event_log / topic.name) if topic is not None else ()
        for finding in (*logged, *examine_store(live, ShardStore(live, clock), plan, wanted)):
            damage += 1
            console.print(finding.what, markup=False)
    found: list[tuple[str, Verified]] = []
    if wanted.kind == "windowed" or not online:
        with tempfile.TemporaryDirectory(prefix="fs") as folder, EmbeddedServer(Path(folder)) as server:
            client = connect(OnlineSettings(url=f"unix://{server.address}"), Path(folder))
            own = compare(plan, wanted, client, repo=settings.repo, keys=keys, per_key=instants, seed=seed)
            found.append(("own store", own))
            client.close()
    if online:
        compare_online = verify_online if wanted.kind == "windowed" else verify_latest_online
        served = compare_online(plan, wanted, live, repo=settings.repo, clock=clock, keys=online_keys)
        found.append(("online store", served))
    for title, each in found:
        for line in lines(each):
            console.print(f"{title}: {line}", markup=False)
    if damage or any(each.differences for _, each in found):
        raise typer.Exit(1)
