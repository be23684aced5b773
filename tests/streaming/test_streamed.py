"""Are the views that a stream keeps those of its topics, and is a mistake named?"""

import pytest

from featurestore.errors import ConfigurationError, UnknownName
from featurestore.plan import Plan
from streaming.rehearsal import TOPIC, shop_plan
from streaming.streamed import stream_views


def test_unknown_topics_and_plans_without_streams_are_named():
    """Before any connection is made."""
    with pytest.raises(UnknownName, match="orders"):
        stream_views(shop_plan(), ["order"])
    with pytest.raises(ConfigurationError, match="no stream views"):
        stream_views(Plan(project="p", version=1, digest="", created_us=0), [])
    assert [view.name for view in stream_views(shop_plan(second_view=True), [TOPIC])] == ["page_orders", "user_orders"]
