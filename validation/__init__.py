"""Does this data keep its promise? Contracts, verdicts, quarantine, drift."""
