"""Does a batch change exactly what its accepted events say, whatever else is in it?"""

import itertools
import random

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from featurestore.errors import DefinitionError
from featurestore.plan import Aggregation, Field, JoinKey
from streaming.pipeline import TopicPipeline
from streaming.rehearsal import START_US, TOPIC, shop_contract, shop_event, shop_events, shop_plan
from streaming.source.records import Batch, Record
from streaming.view_pipeline import ViewPipeline

HOUR_US = 3_600_000_000


def batch_of(values, *, arrivals=None, first=0, key=b"1"):
    records = tuple(
        Record(0, first + number, key, value, START_US if arrivals is None else arrivals[number])
        for number, value in enumerate(values)
    )
    return Batch(TOPIC, "id-1", 0, records, first, first + len(records))


def order(**changes):
    plain = msgspec.json.decode(shop_event(random.Random(1), 7, START_US, 10))
    return msgspec.json.encode({**plain, **changes})


@pytest.fixture(scope="module")
def topic():
    return TopicPipeline(tuple(shop_plan().views.values()), shop_contract())


@pytest.fixture(scope="module")
def view():
    return ViewPipeline(shop_plan().view("user_orders"))


def test_text_that_does_not_fit_is_set_aside():
    """An event whose text is longer than a view keeps of it counts nowhere, and says why."""
    plain = shop_plan().view("user_orders")
    last = Aggregation(
        feature="last_page",
        column="page",
        column_dtype="STRING",
        function="last",
        dtype="STRING",
        window_us=HOUR_US,
        hop_us=HOUR_US,
        params={"max_bytes": 4},
    )
    view = msgspec.structs.replace(
        plain,
        features=(Field(name="last_page", dtype="STRING"),),
        columns=(plain.columns[0], Field(name="page", dtype="STRING")),
        aggregations=(last,),
    )
    judged = TopicPipeline((view,), None).judge(batch_of([order(page="/abc"), order(page="/abcd"), order(page=None)]))
    assert [(item.record.offset, item.reason) for item in judged.rejected] == [(1, "too_long")]
    slots = ViewPipeline(view).partials(judged, now_us=START_US).levels[0].slots
    assert slots["rows"].tolist() == [2]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"event_timestamp": START_US + 5_000_001}, "ahead_of_arrival"),
        ({"event_timestamp": "2400-01-01T00:00:00Z"}, "ahead_of_arrival"),
        ({"amount": 2.0**78}, "too_large"),
        ({"amount": -1}, "contract"),
        ({"currency": "XXX"}, "contract"),
        ({"user_id": None}, "contract"),
    ],
)
def test_what_must_not_count_is_set_aside_with_its_reason(topic, changes, reason):
    """The neighbours pass, the record is kept whole."""
    judged = topic.judge(batch_of([order(), order(**changes), order()]))
    assert [(item.record.offset, item.reason) for item in judged.rejected] == [(1, reason)]
    assert judged.rejected[0].record.value == order(**changes)
    assert judged.offsets.tolist() == [0, 2]
    assert judged.events["_offset"].to_pylist() == [0, 2]


@pytest.mark.parametrize("arrival_us", [-(2**63), 2**63 - 1, (2**63 - 1) * 1000])
def test_a_record_whose_time_is_no_instant_is_set_aside(topic, arrival_us):
    """A producer may write any number there; nothing can be judged against it, and its neighbours pass."""
    judged = topic.judge(batch_of([order(), order(), b"torn"], arrivals=[START_US, arrival_us, arrival_us]))
    assert [(item.record.offset, item.reason) for item in judged.rejected] == [(1, "no_arrival"), (2, "malformed")]
    assert judged.offsets.tolist() == [0]


def test_an_event_within_the_tolerance_of_its_arrival_counts(topic):
    """Clocks of producers may be ahead by five seconds, the bound included."""
    judged = topic.judge(batch_of([order(event_timestamp=START_US + 5_000_000)]))
    assert len(judged.events) == 1


def test_rules_that_warn_are_counted_and_let_the_event_pass(topic):
    """Only quarantine rules set an event aside."""
    judged = topic.judge(batch_of([order(page="relative"), order(page="relative", discount=2)]))
    assert len(judged.events) == 2
    assert judged.warned == {"page_path": 2, "discount_range": 1}


def test_a_broken_contract_names_its_rules(topic):
    """A producer learns every rule that its event broke, the warning ones too."""
    [item] = topic.judge(batch_of([order(amount=-1, quantity=0, page="x")])).rejected
    assert item.rule_ids == ("amount_range", "quantity_range", "page_path")


@pytest.mark.parametrize("seed", range(5))
def test_every_record_is_accepted_or_rejected_and_never_both(topic, seed):
    """In = accepted + rejected, by offset."""
    events = list(shop_events(random.Random(seed), 300))
    batch = batch_of([event.value for event in events], arrivals=[event.arrival_us for event in events], first=50)
    judged = topic.judge(batch)
    offsets = [*judged.offsets.tolist(), *(item.record.offset for item in judged.rejected)]
    assert sorted(offsets) == list(range(50, 350))
    assert judged.rejected


@pytest.mark.parametrize("harm", [list.clear, lambda rejected: rejected.append(rejected[0])])
def test_a_planted_loss_stops_the_batch(topic, monkeypatch, harm):
    """Were a rejected event forgotten, or counted twice, the batch would not be committed."""
    judge = TopicPipeline._apply_rules

    def planted(*arguments, **options):
        judge(*arguments, **options)
        harm(arguments[6])

    monkeypatch.setattr(TopicPipeline, "_apply_rules", staticmethod(planted))
    with pytest.raises(AssertionError, match="neither accepted nor set aside"):
        topic.judge(batch_of([order(), order(amount=-1)]))


@pytest.mark.parametrize("cut", [0, 10, 57, 130, 300])
def test_since_is_the_verdict_on_the_rest(topic, cut):
    """A shard that is ahead by some offsets sees what it would have seen of the later ones alone."""
    events = list(shop_events(random.Random(3), 300))
    batch = batch_of([event.value for event in events], arrivals=[event.arrival_us for event in events])
    rest = topic.judge(batch).since(cut)
    alone = topic.judge(msgspec.structs.replace(batch, records=batch.records[cut:], position_before=cut))
    assert rest.events.equals(alone.events)
    assert [item.record.offset for item in rest.rejected] == [item.record.offset for item in alone.rejected]
    assert rest.ts_us.tolist() == alone.ts_us.tolist()


@pytest.mark.parametrize("pieces", [2, 7])
def test_partials_of_pieces_merge_to_those_of_the_whole(topic, view, pieces):
    """However a log is cut into batches, the same slots come out, bit for bit."""
    events = list(shop_events(random.Random(4), 400, users=5))
    batch = batch_of([event.value for event in events], arrivals=[event.arrival_us for event in events])
    judged = topic.judge(batch)
    whole = slots_of(view.partials(judged, now_us=START_US))
    merged = {}
    edges = np.linspace(0, 400, pieces + 1).astype(int).tolist()
    for start, end in itertools.pairwise(edges):
        part = msgspec.structs.replace(batch, records=batch.records[start:end], position_before=start)
        for key, (level, slot) in slots_of(view.partials(topic.judge(part), now_us=START_US)).items():
            merged[key] = (level, level.merge(merged[key][1], slot) if key in merged else slot)
    assert {key: slot.tobytes() for key, (_, slot) in merged.items()} == {
        key: slot.tobytes() for key, (_, slot) in whole.items()
    }


def parts_of(partials):
    return [*([partials.head] if partials.head else []), *partials.levels]


def slots_of(partials):
    return {
        (part.level.hop_us, partials.keys[code], tile): (part.level, part.slots[number : number + 1])
        for part in parts_of(partials)
        for number, (code, tile) in enumerate(zip(part.code.tolist(), part.tile.tolist(), strict=True))
    }


def test_an_event_older_than_every_window_is_late(topic, view):
    """It goes to the log alone, counted; the windows that still reach it get it, past the head of its key."""
    old = [order(event_timestamp=START_US - hours * HOUR_US) for hours in (1, 20, 80)]
    partials = view.partials(topic.judge(batch_of(old)), now_us=START_US)
    rows = {part.level.hop_us: int(part.slots["rows"].sum()) for part in partials.levels}
    assert rows == {HOUR_US: 1}
    assert partials.head.slots["rows"].tolist() == [1]
    assert partials.late == 2


def test_tiles_that_the_clock_has_expired_are_not_made(topic, view):
    """A replay of last year writes nothing that would expire at once; it is not late for that."""
    partials = view.partials(topic.judge(batch_of([order()])), now_us=START_US + 90 * 24 * HOUR_US)
    assert (partials.head, partials.levels, partials.late) == (None, (), 0)


def test_the_watermark_moves_by_the_lesser_of_event_time_and_arrival(topic):
    """One event dated ahead of its arrival cannot carry the watermark away."""
    values = [order(event_timestamp=START_US + 4_000_000), order(event_timestamp=START_US - 7)]
    assert topic.judge(batch_of(values)).watermark_us == START_US
    assert topic.judge(batch_of([])).watermark_us is None


def test_events_without_an_entity_touch_no_tile():
    """A null key is no entity; the event is accepted all the same."""
    topic = TopicPipeline(tuple(shop_plan(contract=False).views.values()))
    view = ViewPipeline(shop_plan().view("user_orders"))
    judged = topic.judge(batch_of([order(user_id=None), order(user_id=3), order(user_id=None)]))
    partials = view.partials(judged, now_us=START_US)
    assert len(judged.events) == 3
    assert [int(part.slots["rows"].sum()) for part in parts_of(partials)] == [1]
    assert len(partials.keys) == 1


def test_a_view_without_aggregations_is_no_windowed_one():
    """Its events become rows, not tiles."""
    with pytest.raises(DefinitionError, match="no aggregations"):
        ViewPipeline(msgspec.structs.replace(shop_plan().view("user_orders"), kind="latest"))


_ANY = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=4)
    | st.sampled_from(["2024-01-01T00:00:00Z", "0001-01-01T00:00:00+01:00", START_US, "EUR", "/p", "DE", 7, 1.5, -0.0])
)
_COLUMNS = ("event_id", "event_timestamp", "user_id", "amount", "quantity", "currency", "country", "page", "discount")


@given(
    st.lists(
        st.tuples(st.dictionaries(st.sampled_from(_COLUMNS), _ANY), st.integers(-(2**63), 2**65) | st.just(START_US)),
        max_size=8,
    ),
    st.booleans(),
)
@settings(suppress_health_check=[HealthCheck.too_slow])  # how long drawing takes is the machine's load, not the code's
def test_no_event_whatever_stops_the_pipeline(contracted, events, with_contract):
    """Any value in any column, any arrival: verdicts and partials come out, and nothing is lost."""
    topic, view = contracted[with_contract]
    values = [msgspec.json.encode({**msgspec.json.decode(order()), **changes}) for changes, _ in events]
    judged = topic.judge(batch_of(values, arrivals=[arrival for _, arrival in events]))
    assert len(judged.events) + len(judged.rejected) == len(events)
    partials = view.partials(judged, now_us=START_US)
    assert all(int(part.slots["rows"].sum()) <= len(judged.events) for part in parts_of(partials))
    pq.write_table(judged.events, pa.BufferOutputStream())


@pytest.fixture(scope="module")
def contracted():
    views = tuple(shop_plan().views.values())
    view = ViewPipeline(views[0])
    return {True: (TopicPipeline(views, shop_contract()), view), False: (TopicPipeline(views), view)}


@pytest.mark.parametrize("seed", range(8))
def test_what_is_judged_together_is_judged_as_if_alone(seed):
    """Batches of several partitions, some empty, events broken in every way: each gets its own verdicts back."""
    rng = random.Random(seed)
    keyed = TopicPipeline(tuple(shop_plan(keyed=True).views.values()), shop_contract())
    batches = []
    for partition in range(4):
        records = tuple(
            Record(partition, offset, event.key, event.value, event.arrival_us)
            for offset, event in enumerate(shop_events(rng, rng.choice((0, 1, 7, 60))), rng.randrange(90))
        )
        batches.append(Batch(TOPIC, "id-1", partition, records, 0, 200))
    together = keyed.judge_together(batches)
    for batch, found in zip(batches, together, strict=True):
        alone = keyed.judge(batch)
        assert found.batch == batch
        assert found.events.equals(alone.events)
        assert (found.rejected, found.marked) == (alone.rejected, alone.marked)
        for name in ("ts_us", "arrival_us", "offsets"):
            assert np.array_equal(getattr(found, name), getattr(alone, name)), name


@pytest.mark.parametrize("seed", range(8))
def test_partials_of_several_batches_are_those_of_each_alone(seed):
    """One key in two partitions is two entities; batches without events and events without a key do not shift others.

    Twice by each way of finding keys: that of few events and that of many.
    """
    rng = random.Random(seed)
    plan = shop_plan(contract=False)
    view = two_keys(plan.views["user_orders"])
    topic = TopicPipeline([view.view])
    batches = []
    for partition in range(4):
        values = [
            order(user_id=rng.choice((None, 1, 2, 3)), page=rng.choice((None, "/a", "/b")), amount=rng.random(),
                  event_timestamp=START_US - rng.choice((0, HOUR_US, 30 * HOUR_US)))
            for _ in range(rng.choice((0, 1, 9, 9 if seed % 2 else 90)))
        ]  # fmt: skip
        records = tuple(Record(partition, offset, None, value, START_US) for offset, value in enumerate(values))
        batches.append(topic.judge(Batch(TOPIC, "id-1", partition, records, 0, 200)))
    now_us = START_US + HOUR_US
    together = view.partials_of(batches, now_us=now_us)
    for judged, found in zip(batches, together, strict=True):
        alone = view.partials(judged, now_us=now_us)
        assert found.late == alone.late
        assert set(found.keys) == set(alone.keys)
        assert plain(found) == plain(alone)


def plain(partials):
    return {key: slot.tobytes() for key, (_, slot) in slots_of(partials).items()}


def two_keys(view):
    by_page = JoinKey(entity="page", name="page", dtype="STRING")
    page = Field(name="page", dtype="STRING")
    return ViewPipeline(
        msgspec.structs.replace(view, join_keys=(*view.join_keys, by_page), columns=(*view.columns, page))
    )
