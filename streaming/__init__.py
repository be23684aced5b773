"""What does this event change? Sources, the pipeline and its fenced commit, the event log, backfill."""
