"""The Feast plug-ins that three lines of feature_store.yaml name."""
