"""What do a service's tags say about missing, stale, incomplete and invalid values?

    tags={"on_missing": "default", "on_stale": "error", "default.temp_f": "59.0", "tell_replaced": "false"}

`on_missing`, `on_stale`, `on_incomplete` and `on_invalid` say `value` (what was found, which is what no tag means),
`null`, `default` or `error`; `default.FEATURE` (or `default.VIEW__FEATURE`) is a JSON value. `on_alarm` says what holds
while a critical alarm about the service is on: `null`, `default`, or `version:N` for what version N of the plan gives.
"""

import re
from collections.abc import Mapping
from typing import Any, cast, get_args

import msgspec

from featurestore.coercion import coerce
from featurestore.errors import DefinitionError, UsageError
from featurestore.plan import Instead, ServingPolicy

CASES = ("missing", "stale", "incomplete", "invalid")
_DEFAULT = "default."


def compile_policy(service: str, tags: Mapping[str, str], fields: Mapping[tuple[str, str], str]) -> ServingPolicy:
    """The policy of a service; `fields` holds the Feast type of each (view, feature) that it serves.

    Raises DefinitionError for a word that means nothing here, a default of a feature that is not served or not of
    its type, and for a feature that could get `default` but declares none.

    >>> compile_policy("s", {"on_stale": "null"}, {}).stale
    'null'
    """
    choices = {case: _choice(service, f"on_{case}", tags) for case in CASES}
    defaults = {
        tag.removeprefix(_DEFAULT): _default(service, tag, text, fields)
        for tag, text in sorted(tags.items())
        if tag.startswith(_DEFAULT)
    }
    alarm = _alarm(service, tags)
    if "default" in (*choices.values(), alarm):
        without = [f"{v}__{f}" for v, f in fields if f not in defaults and f"{v}__{f}" not in defaults]
        if without:
            raise DefinitionError(
                f"service {service!r} replaces values by defaults; without one: {', '.join(sorted(without))}; "
                f"add a tag {_DEFAULT}FEATURE with a JSON value, null included"
            )
    told = tags.get("tell_replaced", "true")
    if told not in ("true", "false"):
        raise DefinitionError(f"service {service!r}: tag tell_replaced is {told!r}; expected true or false")
    return ServingPolicy(**choices, defaults=defaults, told=told == "true", alarm=alarm)


def _alarm(service: str, tags: Mapping[str, str]) -> str:
    text = tags.get("on_alarm", "value")
    if text not in ("value", "null", "default") and not re.fullmatch(r"version:[1-9]\d*", text):
        raise DefinitionError(
            f"service {service!r}: tag on_alarm is {text!r}; expected value, null, default or version:N (of a plan)"
        )
    return text


def _choice(service: str, tag: str, tags: Mapping[str, str]) -> Instead:
    text = tags.get(tag, "value")
    if text not in get_args(Instead):
        raise DefinitionError(f"service {service!r}: tag {tag} is {text!r}; expected {', '.join(get_args(Instead))}")
    return cast("Instead", text)


def _default(service: str, tag: str, text: str, fields: Mapping[tuple[str, str], str]) -> Any:
    name = tag.removeprefix(_DEFAULT)
    types = {dtype for (view, feature), dtype in fields.items() if name in (feature, f"{view}__{feature}")}
    if not types:
        raise DefinitionError(
            f"service {service!r}: tag {tag} is about a feature that it does not serve; it serves "
            + ", ".join(sorted(f"{view}__{feature}" for view, feature in fields))
        )
    try:
        value = msgspec.json.decode(text)
        for dtype in types:
            coerce([value], dtype)
    except (msgspec.DecodeError, UsageError) as error:
        raise DefinitionError(
            f"service {service!r}: tag {tag} is {text!r}, which is no JSON value of type {', '.join(sorted(types))}: "
            f"{error}"
        ) from error
    return value
