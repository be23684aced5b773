"""What was, and is, this entity's feature value? Plans, joins, tiles, the online store and its API."""
