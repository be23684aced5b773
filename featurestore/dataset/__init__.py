"""Training sets that can be rebuilt and verified."""
