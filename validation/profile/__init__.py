"""What did these values look like? Mergeable column profiles of constant size."""
