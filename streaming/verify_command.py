"""How is a view's parity asked for on the command line?"""

from typing import Annotated

import typer

from featurestore.cli.settings import HERE, Repo, settings_of


def verify(
    view: Annotated[str, typer.Argument(help="A windowed view.")],
    repo: Repo = HERE,
    *,
    keys: Annotated[int, typer.Option(min=1, help="Entity keys drawn from the history.")] = 40,
    instants: Annotated[int, typer.Option(min=1, help="Instants drawn for each key.")] = 12,
    seed: Annotated[int, typer.Option(help="Which keys and instants are drawn.")] = 0,
    online: Annotated[
        bool, typer.Option("--online", help="Also compare what the live online store serves now; it must be current.")
    ] = False,
) -> None:
    """Prove on a view's own history that definition, offline join, tiles and reader give the same bits.

    Instants lie on and around the edges of events, hops, windows, tiles and blocks. Nothing needs to run: tiles are
    made in a store of this command's own. Exit code 1 where a value differs.
    """
    import tempfile
    from pathlib import Path

    from rich.console import Console

    from featurestore.clock import system_clock
    from featurestore.config import OnlineSettings
    from featurestore.online.connection import connect
    from featurestore.online.server import EmbeddedServer
    from featurestore.plan_store import load_plan_file
    from streaming.verify import lines, verify_online
    from streaming.verify import verify as compare

    settings = settings_of(repo)
    plan = load_plan_file(settings.plan_path)
    wanted = plan.view(view)
    with tempfile.TemporaryDirectory(prefix="fs") as folder, EmbeddedServer(Path(folder)) as server:
        client = connect(OnlineSettings(url=f"unix://{server.address}"), Path(folder))
        found = [compare(plan, wanted, client, repo=settings.repo, keys=keys, per_key=instants, seed=seed)]
        client.close()
    if online:
        live = connect(settings.online, settings.data_dir, start=False)
        clock = system_clock(settings.clock_offset_us)
        found.append(verify_online(plan, wanted, live, repo=settings.repo, clock=clock, keys=keys, seed=seed))
    console = Console(soft_wrap=True, highlight=False)
    for title, each in zip(("own store", "online store"), found, strict=False):
        for line in lines(each):
            console.print(f"{title}: {line}", markup=False)
    if any(each.differences for each in found):
        raise typer.Exit(1)
