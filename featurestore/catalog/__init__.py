"""What exists, who owns it, how healthy it is."""
