"""The main job on real data: flights from raw files to served predictions."""
