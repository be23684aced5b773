"""The HTTP API that serves features from a Plan, without Feast in memory."""
