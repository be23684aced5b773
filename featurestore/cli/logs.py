"""Log lines without credentials and control characters, whatever a library writes into them."""

import copy
import logging
from typing import Any

from validation.printable import printable
from validation.redaction import redacted


class PlainFormatter(logging.Formatter):
    """A formatter whose lines show no credential, and nothing that commands a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, tracebacks included."""
        return printable(redacted(super().format(record)), keep="\n\t")


def log_config() -> dict[str, Any]:
    """uvicorn's logging, with its formatters and the product's own lines made plain."""
    from uvicorn.config import LOGGING_CONFIG

    config: dict[str, Any] = copy.deepcopy(LOGGING_CONFIG)
    config["formatters"] = {
        name: {"()": "featurestore.cli.logs.PlainFormatter", "fmt": "%(levelname)s: %(message)s"}
        for name in config["formatters"]
    }
    config["formatters"]["product"] = {
        "()": "featurestore.cli.logs.PlainFormatter",
        "fmt": "%(levelname)s %(name)s: %(message)s",
    }
    config["handlers"]["product"] = {
        "class": "logging.StreamHandler",
        "formatter": "product",
        "stream": "ext://sys.stderr",
    }
    config["root"] = {"handlers": ["product"], "level": "WARNING"}
    return config
