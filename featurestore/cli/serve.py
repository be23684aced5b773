"""How is the feature API started from the command line?"""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from featurestore.config import Settings


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
    tls_cert: Annotated[
        Path | None, typer.Option(envvar="FEATURESTORE_TLS_CERT", help="Certificate chain (PEM): serve HTTPS.")
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option(envvar="FEATURESTORE_TLS_KEY", help="The certificate's private key (PEM).")
    ] = None,
    open_: Annotated[
        bool, typer.Option("--open", help="Let everybody on this machine in, without a key; loopback addresses only.")
    ] = False,
) -> None:
    """Serve features over HTTP from the plan in force, until SIGTERM; open requests are answered first.

    Callers need an API key (`featurestore keys create`, or FEATURESTORE_API_KEYS: SHA-256 digests, comma separated) or
    a token of FEATURESTORE_OIDC_*. Where there is none of these, a loopback address gets a key that is printed.
    """
    # Slow to import, and `featurestore --help` must not wait for it.
    import uvicorn

    from featurestore.api.access import proxies_of
    from featurestore.api.connections import FILES, allow_files
    from featurestore.api.process import OPEN, REPO, WORKERS
    from featurestore.api.protocol import DirectProtocol
    from featurestore.api.worker_metrics import VARIABLE, shared_folder
    from featurestore.cli.logs import log_config
    from featurestore.cli.settings import settings_of
    from featurestore.errors import ConfigurationError

    if clock_offset_s is not None:
        os.environ["FEATURESTORE_CLOCK_OFFSET_S"] = str(clock_offset_s)
    # Judged here, before any worker starts: what is wrong is one line and an exit code.
    settings = settings_of(repo)
    if (tls_cert is None) != (tls_key is None):
        raise ConfigurationError("--tls-cert and --tls-key go together; give both or none")
    _settle_access(settings, host, without_keys=open_)
    if workers > 1:
        os.environ.setdefault(VARIABLE, str(shared_folder(settings.data_dir)))
    proxies = proxies_of(os.environ)
    allow_files(FILES)
    os.environ |= {REPO: str(settings.repo), WORKERS: str(workers), OPEN: "1" if open_ else "0"}
    uvicorn.run(
        "featurestore.api.process:application",
        factory=True,
        host=host,
        port=port,
        workers=workers,
        http=DirectProtocol,
        access_log=False,
        server_header=False,
        proxy_headers=bool(proxies),
        forwarded_allow_ips=proxies,
        ws="none",
        log_config=log_config(),
        # Within the grace that every command has: the online store is waited for two seconds at most.
        timeout_graceful_shutdown=3,
        ssl_certfile=tls_cert,
        ssl_keyfile=tls_key,
    )


def _settle_access(settings: "Settings", host: str, *, without_keys: bool) -> None:
    """Sees to it that no address is opened without credentials; raises ConfigurationError, StoreUnavailable.

    Where nobody could be let in, this run gets a key of its own, in the environment of its workers and on standard
    error.
    """
    import secrets

    from featurestore.api.access import VARIABLE, check_bind, check_open, keys_of
    from featurestore.api.key_store import PREFIX, KeyStore, digest_of
    from featurestore.online.connection import connect
    from featurestore.signing import signer_of

    if without_keys:
        check_open(host)
        return
    if keys_of(os.environ) or os.environ.get("FEATURESTORE_OIDC_JWKS"):
        return
    store = KeyStore(connect(settings.online, settings.data_dir), settings.project, signer_of(settings.data_dir))
    stored = any(key.revoked_us is None for key in store.list())
    check_bind(host, stored)
    if not stored:
        key = PREFIX + secrets.token_urlsafe(32)
        os.environ[VARIABLE] = digest_of(key).hex()
        sys.stderr.write(f"no API key exists; for this run: {key}\n")
