"""How are API keys made and ended from the command line?"""

from typing import TYPE_CHECKING, Annotated

import typer

from featurestore.cli.settings import HERE, Repo, settings_of

if TYPE_CHECKING:
    from pathlib import Path

    from featurestore.api.key_store import KeyStore

app = typer.Typer(help="API keys: who may read, write and push through the feature API.", no_args_is_help=True)


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="What the key is for; shown in lists and in the audit log.")],
    repo: Repo = HERE,
    *,
    role: Annotated[list[str], typer.Option(help="reader, writer, producer or admin; repeatable.")],
    grant: Annotated[
        list[str] | None, typer.Option(help="A view tagged pii that the key opens, or pii for all; repeatable.")
    ] = None,
    producer: Annotated[
        list[str] | None,
        typer.Option(help="A producer whose contract violations the key shows, with role producer; repeatable."),
    ] = None,
    rate: Annotated[float | None, typer.Option(help="Requests a second; default: the service's.")] = None,
) -> None:
    """Create an API key and print it: this once, for only its digest is kept."""
    import sys

    from featurestore.clock import system_clock

    secret, key = _store(repo).create(
        name, role, grants=grant or [], producers=producer or [], rate_per_s=rate, clock=system_clock()
    )
    sys.stderr.write(f"key {key.id} ({key.name}), roles {', '.join(key.roles)}; it is not shown again:\n")
    sys.stdout.write(f"{secret}\n")


@app.command("list")
def list_keys(repo: Repo = HERE) -> None:
    """List the API keys, revoked ones included; none is shown itself."""
    from rich.table import Table

    from featurestore.clock import iso
    from validation.terminal import Console

    table = Table("id", "name", "roles", "grants", "producers", "rate", "created", "revoked")
    for key in _store(repo).list():
        rate = "" if key.rate_per_s is None else f"{key.rate_per_s:g}/s"
        revoked = "" if key.revoked_us is None else iso(key.revoked_us)
        lists = [", ".join(words) for words in (key.roles, key.grants, key.producers)]
        table.add_row(key.id, key.name, *lists, rate, iso(key.created_us), revoked)
    Console().print(table)


@app.command()
def revoke(key_id: Annotated[str, typer.Argument(metavar="ID", help="The key's id.")], repo: Repo = HERE) -> None:
    """End an API key: within about a second no worker lets it in."""
    from featurestore.clock import system_clock
    from validation.terminal import Console

    key = _store(repo).revoke(key_id, clock=system_clock())
    Console().print(f"key {key.id} ({key.name}) is revoked")


@app.command()
def sign(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="The key's id, as an earlier version had it.")],
    repo: Repo = HERE,
) -> None:
    """Sign an API key that an earlier version made without a signature; look at what it may do first."""
    from rich.console import Console

    key = _store(repo).sign(key_id)
    Console().print(f"key {key.id} ({key.name}), roles {', '.join(key.roles)}, grants {', '.join(key.grants)}: signed")


def _store(repo: "Path") -> "KeyStore":
    from featurestore.api.key_store import KeyStore
    from featurestore.online.connection import connect
    from featurestore.signing import signer_of

    settings = settings_of(repo)
    return KeyStore(connect(settings.online, settings.data_dir), settings.project, signer_of(settings.data_dir))
