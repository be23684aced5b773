"""Does every broken message fall alone, with its reason, and every sound one become the right row?"""

import datetime as dt
from decimal import Decimal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore.errors import DefinitionError
from featurestore.plan import Field, JoinKey, Source, Topic, View
from streaming.decode import Decoder
from streaming.event_columns import by_topic
from validation.contract import Column, Contract

T0 = 1_704_067_200_000_000  # 2024-01-01T00:00:00Z


class Message(msgspec.Struct):
    value: bytes | None
    key: bytes | None = None


def view(name="carts", *, keyed=False, key_dtype="INT64", fmt="json", mapping=None, columns=(("amount", "DOUBLE"),)):
    topic = Topic(name="clicks", bootstrap_servers="", message_format=fmt, event_id="event_id", key_column="user_id")
    return View(
        name=name,
        version=1,
        kind="windowed",
        join_keys=(JoinKey(entity="user", name="user_id", dtype=key_dtype),),
        features=(),
        ttl_us=0,
        source=Source(
            name="clicks", path="clicks", timestamp_field="ts", topic=topic, field_mapping=dict(mapping or {})
        ),
        columns=tuple(Field(name=n, dtype=d) for n, d in columns),
        partitions="keyed" if keyed else "spread",
    )


GOOD = b'{"event_id": "e", "user_id": 7, "ts": "2024-01-01T00:00:00Z", "amount": 1.5, "other": {"deep": [1]}}'


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "empty"),
        (b"", "empty"),
        (b" ", "malformed"),
        (b"null", "wrong_type"),
        (b"[]", "wrong_type"),
        (GOOD[:-1], "malformed"),
        (GOOD[:40], "malformed"),
        (GOOD + GOOD, "malformed"),
        (GOOD + b"x", "malformed"),
        (b"\xff\xfe" + GOOD, "malformed"),
        (GOOD.replace(b'"e"', b'"\xff"'), "malformed"),
        (GOOD.replace(b'"e"', b'"\\ud800"'), "malformed"),
        (GOOD.replace(b"1.5", b"NaN"), "malformed"),
        (GOOD.replace(b"1.5", b"Infinity"), "malformed"),
        (GOOD.replace(b"1.5", b"1e400"), "wrong_type"),
        (GOOD.replace(b"1.5", b"-1e400"), "wrong_type"),
        (GOOD.replace(b"1.5", b'"1.5"'), "wrong_type"),
        (GOOD.replace(b"1.5", b"true"), "wrong_type"),
        (GOOD.replace(b": 7", b": 9223372036854775808"), "wrong_type"),
        (GOOD.replace(b": 7", b": 18446744073709551616"), "wrong_type"),
        (GOOD.replace(b": 7", b": 7.5"), "wrong_type"),
        (GOOD.replace(b": 7", b': "seven"'), "bad_key"),
        (GOOD.replace(b": 7", b': "07"'), "bad_key"),
        (GOOD.replace(b"2024-01-01T00:00:00Z", b"yesterday"), "wrong_type"),
        (GOOD.replace(b'"2024-01-01T00:00:00Z"', b"null"), "no_timestamp"),
        (GOOD.replace(b'"ts"', b'"TS"'), "no_timestamp"),
        (GOOD.replace(b'"2024-01-01T00:00:00Z"', b"9223372036854775807"), "wrong_type"),
        (GOOD.replace(b'"2024-01-01T00:00:00Z"', b"-9223372036854775808"), "wrong_type"),
        (GOOD.replace(b"2024-01-01T00:00:00Z", b"0001-01-01T00:00:00+05:00"), "wrong_type"),
        (GOOD.replace(b"2024-01-01T00:00:00Z", b"9999-12-31T23:59:59-05:00"), "wrong_type"),
        (b'{"ts": 1, "q": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "malformed"),
    ],
)
def test_a_broken_message_falls_alone_with_its_reason(value, reason):
    """Whatever stands between two sound messages, they pass and it does not."""
    found = Decoder([view()]).decode([Message(GOOD), Message(value), Message(GOOD)])
    assert [(bad.index, bad.reason) for bad in found.malformed] == [(1, reason)]
    assert found.index.tolist() == [0, 2]
    assert found.malformed[0].detail


@pytest.mark.parametrize(
    ("text", "ts_us"),
    [
        (b'"2024-01-01T00:00:00Z"', T0),
        (b'"2024-01-01T05:30:00+05:30"', T0),
        (b'"2024-01-01T00:00:00"', T0),
        (b'"2024-01-01T00:00:00.000001Z"', T0 + 1),
        (b'"2024-01-01T00:00:00.0000019Z"', T0 + 1),
        (b'"2023-12-31T23:59:59.999999999Z"', T0 - 1),
        (str(T0).encode(), T0),
        (b'"1969-12-31T23:59:59.999999Z"', -1),
        (b'"2400-01-01T00:00:00Z"', 13_569_465_600_000_000),
        (b'"0001-01-01T05:00:00+05:00"', -62_135_596_800_000_000),
    ],
)
def test_timestamps_are_rfc3339_or_integer_microseconds(text, ts_us):
    """Every spelling of an instant is the same int64, in the row's time and in its column."""
    decoder = Decoder([view()])
    found = decoder.decode([Message(GOOD.replace(b'"2024-01-01T00:00:00Z"', text))])
    assert found.ts_us.tolist() == [ts_us]
    assert decoder.table(found.rows)["ts"].cast("int64").to_pylist() == [ts_us]


def test_flooring_instants_leaves_texts_alone():
    """A text that looks like a time of day keeps its digits."""
    text = GOOD.replace(b'"e"', b'"at 10:22.123456789"').replace(b"00:00Z", b"00:00.1234567Z")
    [row] = Decoder([view()]).decode([Message(text)]).rows
    assert (row.event_id, row.ts.microsecond) == ("at 10:22.123456789", 123_456)


def test_every_instant_of_a_row_must_be_one():
    """Not only the event's own time: a column of another goes to files that could not say it."""
    decoder = Decoder([view(columns=(("amount", "DOUBLE"), ("due", "UNIX_TIMESTAMP")))])
    texts = [b'"0001-01-01T00:00:00+05:00"', b'"9999-12-31T23:59:59Z"', b"null", str(T0).encode()]
    found = decoder.decode([Message(GOOD[:-1] + b', "due": ' + text + b"}") for text in texts])
    assert [(bad.index, bad.reason) for bad in found.malformed] == [(0, "wrong_type")]
    assert decoder.table(found.rows)["due"].cast("int64").to_pylist() == [253_402_300_799_000_000, None, T0]


def test_a_key_has_its_entitys_type_however_it_is_written():
    """5 and "5" are one key, of the declared type, in rows and columns alike."""
    for dtype, key in (("INT64", 5), ("INT32", 5), ("STRING", "5")):
        decoder = Decoder([view(key_dtype=dtype)])
        found = decoder.decode([Message(GOOD.replace(b": 7", b": 5")), Message(GOOD.replace(b": 7", b': "5"'))])
        assert decoder.table(found.rows)["user_id"].to_pylist() == [key, key]
        assert {row.user_id for row in found.rows} == {key}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (b"12.5", "12.50"),
        (b'"12.500"', "12.50"),
        (b"-0", "0.00"),
        (b"1e2", "100.00"),
        (b"12.345", None),
        (b"1000", None),
        (b"1e400", None),
        (b'"NaN"', None),
        (b'"1e999999999"', None),
        (b'"twelve"', None),
    ],
)
def test_a_decimal_is_exact_or_set_aside(text, found):
    """As number or text, with as many digits behind the point as declared; never rounded."""
    decoder = Decoder([view(columns=(("amount", "DECIMAL(5,2)"),))])
    decoded = decoder.decode([Message(GOOD.replace(b"1.5", text)), Message(GOOD)])
    assert [bad.reason for bad in decoded.malformed] == ([] if found else ["wrong_type"])
    expected = [Decimal(found), Decimal("1.50")] if found else [Decimal("1.50")]
    assert decoder.table(decoded.rows)["amount"].to_pylist() == expected


STAMPS = [
    b'"2024-01-01T00:00:00Z"',
    b"1704067200000000",
    b'"2024-01-01T01:00:00.5+01:00"',
    b'"2024-01-01T00:00:00"',
    b'"2024-01-01T00:00:00.1234567Z"',
    b'"0001-01-01T00:00:00+01:00"',
    b'"9999-12-31T23:59:59-01:00"',
    b"null",
]
ODD = [GOOD.replace(b'"2024-01-01T00:00:00Z"', stamp) for stamp in STAMPS]
ODD += [GOOD.replace(b": 7", b': "7"'), GOOD.replace(b": 7", b": null"), GOOD + GOOD, GOOD[:-1], b"}", b"", None]


@pytest.mark.parametrize("keyed", [False, True])
@pytest.mark.parametrize("key_dtype", ["INT64", "INT32", "STRING"])
@given(odd=st.lists(st.sampled_from(ODD), max_size=4), stamp=st.sampled_from(STAMPS), wrong_key=st.booleans())
def test_many_at_once_are_what_they_are_one_by_one(keyed, key_dtype, odd, stamp, wrong_key):
    """Looking at sound messages together neither lets through nor sets aside what one by one would not."""
    decoder = Decoder([view(keyed=keyed, key_dtype=key_dtype)])
    values = [GOOD.replace(b'"2024-01-01T00:00:00Z"', stamp)] * 3 + odd
    messages = [Message(value, b"7") for value in values] + [Message(GOOD, b"8")] * wrong_key
    together, alone = decoder.decode(messages), decoder._one_by_one(messages, 0)
    assert decoder.table(together.rows) == decoder.table(alone.rows)
    assert (together.index.tolist(), together.ts_us.tolist()) == (alone.index.tolist(), alone.ts_us.tolist())
    assert together.malformed == alone.malformed


def test_a_date_is_a_day():
    """Dates are written as such; an instant is none."""
    decoder = Decoder([view(columns=(("amount", "DATE"),))])
    values = [GOOD.replace(b"1.5", text) for text in (b'"2024-02-29"', b'"2024-02-30"', b'"2024-02-29T01:00:00Z"')]
    decoded = decoder.decode([Message(value) for value in values])
    assert [bad.reason for bad in decoded.malformed] == ["wrong_type", "wrong_type"]
    assert decoder.table(decoded.rows)["amount"].to_pylist() == [dt.date(2024, 2, 29)]


def test_an_int32_key_beyond_its_range_is_set_aside():
    """A key that its type cannot hold is no key."""
    found = Decoder([view(key_dtype="INT32")]).decode([Message(GOOD.replace(b": 7", b": 2147483648"))])
    assert [bad.reason for bad in found.malformed] == ["bad_key"]


def test_a_keyed_views_message_key_must_be_the_entitys():
    """One partition holds all of a key only if the message key says the same as the row."""
    messages = [Message(GOOD, b"7"), Message(GOOD, b"8"), Message(GOOD, None), Message(GOOD.replace(b": 7", b": null"))]
    found = Decoder([view(keyed=True)]).decode(messages)
    assert [(bad.index, bad.reason) for bad in found.malformed] == [(1, "key_mismatch"), (2, "key_mismatch")]
    assert len(Decoder([view()]).decode(messages).rows) == 4


def test_a_refused_key_is_not_quoted():
    """Keys may be the names of persons: the reason of a dead letter names the place alone."""
    odd = {"INT32": b": 3133700000", "INT64": b': "mark-31337"'}
    found = [
        bad
        for dtype, value in odd.items()
        for bad in Decoder([view(key_dtype=dtype)]).decode([Message(GOOD.replace(b": 7", value))]).malformed
    ]
    found += Decoder([view(keyed=True)]).decode([Message(GOOD, b"mark-31337")]).malformed
    assert [bad.reason for bad in found] == ["bad_key", "bad_key", "key_mismatch"]
    assert [bad.detail for bad in found if "31337" in bad.detail] == []


def test_columns_follow_the_views_and_the_contract():
    """All columns that a view or the contract names are kept, the others dropped, missing ones null."""
    contract = Contract(
        name="clicks",
        version="1.0.0",
        source="clicks",
        columns=(Column(name="page", logical_type="string"), Column(name="count", logical_type="integer")),
        rules=(),
    )
    decoder = Decoder([view(), view("other", columns=(("price", "DOUBLE"),))], contract)
    found = decoder.decode([Message(GOOD[:-1] + b', "page": "home"}')])
    assert decoder.table(found.rows).drop_columns(["ts"]).to_pylist() == [
        {"user_id": 7, "amount": 1.5, "price": None, "page": "home", "count": None, "event_id": "e"}
    ]


def test_columns_are_read_under_the_producers_names():
    """A field mapping names the view's column; the message and the event log keep the producer's."""
    decoder = Decoder([view(mapping={"Order total": "amount"})])
    found = decoder.decode([Message(GOOD.replace(b'"amount"', b'"Order total"'))])
    assert decoder.table(found.rows)["Order total"].to_pylist() == [1.5]


@pytest.mark.parametrize(
    "views",
    [
        [view(), view("other", columns=(("amount", "INT64"),))],
        [view(), view("other", key_dtype="STRING")],
        [view(columns=(("amount", "UNIX_TIMESTAMP_LIST"),))],
        [view(fmt="avro")],
    ],
)
def test_definitions_that_no_message_can_satisfy_are_refused(views):
    """Views that disagree about a topic, unknown types and formats stop the start, not the stream."""
    with pytest.raises(DefinitionError):
        Decoder(views)


def test_a_view_without_aggregations_reads_its_features():
    """Lists too; an element of another type sets the event aside."""
    latest = msgspec.structs.replace(
        view(columns=()),
        kind="latest",
        features=(Field(name="amount", dtype="DOUBLE"), Field(name="tags", dtype="STRING_LIST")),
    )
    decoder = Decoder([latest])
    found = decoder.decode([Message(GOOD[:-1] + b', "tags": ["a", null]}'), Message(GOOD[:-1] + b', "tags": [1]}')])
    assert decoder.table(found.rows)["tags"].to_pylist() == [["a", None]]
    assert [bad.reason for bad in found.malformed] == ["wrong_type"]


def test_views_are_grouped_by_the_topic_they_read():
    """One decode serves all views of a topic; batch views have none."""
    batch = msgspec.structs.replace(view("batch"), source=Source(name="b", path="b", timestamp_field="ts"))
    assert {topic: [v.name for v in views] for topic, views in by_topic([view("b2"), batch, view("a1")]).items()} == {
        "clicks": ["a1", "b2"]
    }


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["ts", "amount", "user_id"]), inner),
    max_leaves=8,
)


@given(
    st.lists(
        st.binary(max_size=60) | _JSON.map(msgspec.json.encode) | st.just(GOOD) | st.none(),
        max_size=12,
    )
)
def test_no_bytes_whatever_stop_the_decoder(values):
    """Every message is either a row that Arrow accepts or set aside: none is lost, none raises."""
    decoder = Decoder([view()])
    found = decoder.decode([Message(value) for value in values])
    assert sorted([*found.index.tolist(), *(bad.index for bad in found.malformed)]) == list(range(len(values)))
    table = decoder.table(found.rows)
    assert len(table) == len(found.ts_us) == len(found.rows)
    assert [value == GOOD for value in values].count(True) <= len(found.rows)
