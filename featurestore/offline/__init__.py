"""Point-in-time joins as pure functions from Arrow tables to Arrow tables."""
