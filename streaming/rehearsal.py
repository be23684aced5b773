"""What does a stream look like on which everything is tried: tests, chaos, benchmarks?

A made-up shop: events of about 170 bytes and ten fields, a contract of ten rules, one view with three windows. The
broken events are of every kind that a topic has been seen to carry.
"""

import random
from collections.abc import Iterator
from typing import Final

import msgspec

from featurestore.plan import Aggregation, Field, JoinKey, Plan, Source, Topic, View
from validation.contract import Column, Contract, Rule

TOPIC: Final = "orders"
START_US: Final = 1_700_000_000_000_000
_MINUTE_US = 60_000_000
_WINDOWS_US: Final = {"1h": 60 * _MINUTE_US, "6h": 360 * _MINUTE_US, "24h": 1440 * _MINUTE_US}
_FUNCTIONS: Final = {"count": "INT64", "sum": "DOUBLE", "mean": "DOUBLE", "max": "DOUBLE"}


class Event(msgspec.Struct, frozen=True):
    """A message and its time of arrival."""

    key: bytes | None
    value: bytes | None
    arrival_us: int


def shop_plan(*, second_view: bool = False, contract: bool = True, keyed: bool = False, topic: str = TOPIC) -> Plan:
    """The Plan of the shop: view `user_orders`, and `page_orders` of the same topic where asked."""
    declared = Topic(
        name=topic, bootstrap_servers="localhost:9092", message_format="json", event_id="event_id", key_column="user_id"
    )
    source = Source(name=TOPIC, path=f"event_log/{topic}", timestamp_field="event_timestamp", topic=declared)
    views = [_view("user_orders", "user_id", "INT64", source, "keyed" if keyed else "spread")]
    if second_view:
        views.append(_view("page_orders", "page", "STRING", source, "spread"))
    return Plan(
        project="shop",
        version=1,
        digest="",
        created_us=0,
        views={view.name: view for view in views},
        contracts={TOPIC: shop_contract()} if contract else {},
    )


def shop_contract() -> Contract:
    """Ten rules on an order; eight set it aside, two only warn."""
    between = "expect_column_values_to_be_between"
    not_null = "expect_column_values_to_not_be_null"
    rules = (
        ("id_there", not_null, {"column": "event_id"}),
        ("user_there", not_null, {"column": "user_id"}),
        ("user_positive", between, {"column": "user_id", "min_value": 0}),
        ("amount_there", not_null, {"column": "amount"}),
        ("amount_range", between, {"column": "amount", "min_value": 0, "max_value": 1e6}),
        ("quantity_range", between, {"column": "quantity", "min_value": 1, "max_value": 1000}),
        (
            "currency_known",
            "expect_column_values_to_be_in_set",
            {"column": "currency", "value_set": ["EUR", "USD", "GBP"]},
        ),
        ("country_code", "expect_column_value_lengths_to_equal", {"column": "country", "value": 2}),
        ("discount_range", between, {"column": "discount", "min_value": 0, "max_value": 1}),
        ("page_path", "expect_column_values_to_match_regex", {"column": "page", "regex": "^/"}),
    )
    columns = {
        "event_id": "string",
        "event_timestamp": "timestamp",
        "user_id": "integer",
        "amount": "number",
        "quantity": "integer",
        "currency": "string",
        "country": "string",
        "page": "string",
        "discount": "number",
        "device": "string",
    }
    warn_only = {"discount_range", "page_path"}
    return Contract(
        name=TOPIC,
        version="1.0.0",
        source=TOPIC,
        columns=tuple(Column(name=name, logical_type=kind) for name, kind in columns.items()),
        rules=tuple(
            Rule(
                id=name,
                expectation=expectation,
                arguments=dict(arguments),
                mode="warn" if name in warn_only else "quarantine",
            )
            for name, expectation, arguments in rules
        ),
    )


def shop_event(rng: random.Random, number: int, ts_us: int, users: int) -> bytes:
    """One sound order as JSON."""
    order = {
        "event_id": f"{number:012x}",
        "event_timestamp": ts_us,
        "user_id": rng.randrange(users),
        "amount": round(rng.lognormvariate(3, 1), 2),
        "quantity": rng.randrange(1, 10),
        "currency": rng.choice(("EUR", "USD", "GBP")),
        "country": rng.choice(("DE", "US", "GB", "FR")),
        "page": f"/p/{rng.randrange(40)}",
        "discount": rng.choice((0.0, 0.1, 0.25)),
        "device": rng.choice(("phone", "desktop")),
    }
    return msgspec.json.encode(order)


def shop_events(
    rng: random.Random, count: int, *, users: int = 40, start_us: int = START_US, gap_us: int = 40_000_000
) -> Iterator[Event]:
    """Orders as they come, each at most `gap_us` after the last: some late or very late, one in eight broken."""
    now_us = start_us
    for number in range(count):
        now_us += rng.randrange(1, gap_us)
        late_us = rng.choice((0, 0, 0, rng.randrange(600_000_000), rng.randrange(20 * 3600 * 1_000_000)))
        if rng.random() < 0.02:
            late_us = 80 * 24 * 3600 * 1_000_000
        value = shop_event(rng, number, now_us - late_us, users)
        user = msgspec.json.decode(value)["user_id"]
        yield Event(str(user).encode(), _damaged(rng, value, now_us) if rng.random() < 0.125 else value, now_us)


def _damaged(rng: random.Random, value: bytes, now_us: int) -> bytes | None:
    order = msgspec.json.decode(value)
    kinds: tuple[bytes | None, ...] = (
        None,
        b"",
        b"null",
        value[: rng.randrange(len(value))],
        value + value,
        b"\xff" + value,
        value.replace(b'"amount":', b'"amount":NaN,"x":'),
        value.replace(b'"amount":', b'"amount":1e400,"x":'),
        value.replace(b'"quantity":', b'"quantity":99999999999999999999,"x":'),
        b'{"deep":' * 5000,
        msgspec.json.encode({**order, "user_id": "somebody"}),
        msgspec.json.encode({**order, "event_timestamp": now_us + 3_600_000_000}),
        msgspec.json.encode({**order, "event_timestamp": "2400-01-01T00:00:00Z"}),
        msgspec.json.encode({**order, "event_timestamp": None}),
        msgspec.json.encode({**order, "amount": -1.0}),
        msgspec.json.encode({**order, "amount": 1e300}),
        msgspec.json.encode({**order, "currency": "XXX"}),
        msgspec.json.encode({**order, "user_id": None}),
        msgspec.json.encode({**order, "page": "relative", "more": {"unknown": [1, 2]}}),
        msgspec.json.encode({**order, "event_timestamp": "1970-01-01T00:00:00Z"}),
    )
    return rng.choice(kinds)


def _view(name: str, key: str, dtype: str, source: Source, partitions: str) -> View:
    aggregations = tuple(
        Aggregation(
            feature=f"amount_{function}_{label}",
            column="amount",
            column_dtype="DOUBLE",
            function=function,
            dtype=result,
            window_us=window_us,
            hop_us=5 * _MINUTE_US if label != "24h" else 60 * _MINUTE_US,
        )
        for label, window_us in _WINDOWS_US.items()
        for function, result in _FUNCTIONS.items()
    )
    return View(
        name=name,
        version=1,
        kind="windowed",
        join_keys=(JoinKey(entity=key, name=key, dtype=dtype),),
        features=tuple(Field(name=item.feature, dtype=item.dtype) for item in aggregations),
        ttl_us=0,
        source=source,
        columns=(Field(name=key, dtype=dtype), Field(name="amount", dtype="DOUBLE")),
        aggregations=aggregations,
        partitions="keyed" if partitions == "keyed" else "spread",
    )
