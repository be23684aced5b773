"""The shop's next contract, and contracts as files."""

import msgspec

from streaming.rehearsal import shop_contract


def lenient():
    """The next version: an order may give money back."""
    rules = [
        msgspec.structs.replace(rule, arguments={"column": "amount", "min_value": -1000, "max_value": 1e6})
        if rule.id == "amount_range"
        else rule
        for rule in shop_contract().rules
    ]
    return msgspec.structs.replace(shop_contract(), version="1.1.0", rules=tuple(rules))


def odcs(contract, topic):
    """A contract as an ODCS file's content."""
    quality = [
        {
            "id": rule.id,
            "type": "custom",
            "engine": "great-expectations",
            "implementation": {"type": rule.expectation, "kwargs": rule.arguments},
            "customProperties": [{"property": "mode", "value": rule.mode}],
        }
        for rule in contract.rules
    ]
    properties = [{"name": each.name, "logicalType": each.logical_type} for each in contract.columns]
    head = {"apiVersion": "v3.1.0", "kind": "DataContract", "id": topic, "status": "active"}
    schema = [{"name": topic, "properties": properties, "quality": quality}]
    return {**head, "version": contract.version, "schema": schema}
