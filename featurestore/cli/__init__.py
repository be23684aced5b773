"""The command line; every package registers its own sub-commands."""
