"""The rules of a contract as one Python function per event and one SQL statement per batch."""
