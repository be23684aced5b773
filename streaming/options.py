"""Which options do several commands of the stream have in common?"""

from typing import Annotated, Final

import typer

SCHEMA_REGISTRY: Final = "FEATURESTORE_SCHEMA_REGISTRY"

Topics = Annotated[list[str] | None, typer.Argument(help="Topics to read; all that stream views read if none.")]
Registry = Annotated[
    str | None,
    typer.Option(
        envvar=SCHEMA_REGISTRY,
        help="Resolves schema ids of messages: a folder of files named by id, or an http address.",
    ),
]
