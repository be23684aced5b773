"""With which secret is an address told things? What a command line and an environment must say of a webhook."""

import time
from collections.abc import Callable, Mapping
from typing import Final

from featurestore.errors import ConfigurationError
from validation.webhook import Webhook

_SHORTEST: Final = 16


def webhook_of(
    url: str, variable: str, environ: Mapping[str, str], sleep: Callable[[float], object] = time.sleep
) -> Webhook:
    """A webhook signed with the secret in a variable; raises ConfigurationError where that is none worth the name."""
    secret = environ.get(variable, "")
    if len(secret) < _SHORTEST:
        raise ConfigurationError(
            f"{variable} is {'not set' if not secret else f'shorter than {_SHORTEST} characters'}: anybody could forge "
            "what is told; make one with: openssl rand -hex 32"
        )
    if not url.startswith(("http://", "https://")):
        raise ConfigurationError(f"--webhook {url!r} is no address; expected http:// or https://")
    return Webhook(url, secret.encode(), sleep=sleep)
