"""How is the feature API started from the command line?"""

import os
from pathlib import Path
from typing import Annotated

import typer


def serve(
    repo: Annotated[Path, typer.Option("--repo", help="The feature repo: the folder of feature_store.yaml.")] = Path(
        "feature_repo"
    ),
    *,
    host: Annotated[str, typer.Option(help="Address to listen on; beyond loopback needs API keys.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes any free one.")] = 6566,
    workers: Annotated[int, typer.Option(min=1, max=256, help="Processes that serve.")] = 1,
    clock_offset_s: Annotated[
        float | None, typer.Option(help="Seconds added to the clock: negative to serve a replayed past.")
    ] = None,
) -> None:
    """Serve features over HTTP from the plan in force, until SIGTERM; open requests are answered first.

    A listener that other machines can reach needs FEATURESTORE_API_KEYS (SHA-256 digests, comma separated).
    """
    # Slow to import, and `featurestore --help` must not wait for it.
    import uvicorn

    from featurestore.api.access import check_bind, keys_of
    from featurestore.api.process import REPO
    from featurestore.cli.settings import settings_of

    if clock_offset_s is not None:
        os.environ["FEATURESTORE_CLOCK_OFFSET_S"] = str(clock_offset_s)
    # Judged here, before any worker starts: what is wrong is one line and an exit code.
    settings = settings_of(repo)
    check_bind(host, keys_of(os.environ))
    os.environ[REPO] = str(settings.repo)
    uvicorn.run(
        "featurestore.api.process:application",
        factory=True,
        host=host,
        port=port,
        workers=workers,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=30,
    )
