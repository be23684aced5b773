"""The online store: row codec, atomic writes, planned reads, embedded server."""
