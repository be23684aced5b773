"""Under which words do commands about contracts and quarantine stand? Packages above this one add theirs."""

from typing import Final

import typer

BROKEN_EXIT: Final = 3
"""A check broke."""
NO_DATA_EXIT: Final = 4

contract_app = typer.Typer(help="Data contracts: what producers promise.", no_args_is_help=True)
quarantine_app = typer.Typer(help="Rows that were set aside, and why.", no_args_is_help=True)
