"""Requests as strangers send them, to the real server: a right value or a 4xx, never a 500, never silence."""

import copy
import json
import random
import socket
import string
from pathlib import Path
from typing import Any

import httpx
from command_outcome import report, seeds
from dirty_documents import TEXTS, mutate_document, mutated, value
from served_project import GOOD, NOW_US, PROJECT, land, make_app, make_plan, serve

from featurestore.api.limits import Limits
from featurestore.api.materialization import Materializer
from featurestore.api.writes import Writes, appender
from featurestore.online.connection import StoreClient
from featurestore.online.writer import RowWriter
from featurestore.plan_store import PlanStore

WEATHER = {"origin": ["XXX"], "temp_f": [1.5], "event_timestamp": ["2024-06-01T11:00:00Z"]}
BODIES: dict[str, list[dict[str, Any]]] = {
    "/get-online-features": [
        GOOD,
        {"feature_service": "delay", "entities": {"origin": ["EWR", "JFK"], "plane": [7, 8], "sched_hour": [1, 19]}},
        {"feature_service": "pair", "entities": {"from": ["EWR"], "to": ["JFK"]}, "full_feature_names": True},
        {"features": ["echo:back"], "entities": {"sent": [{"a": [1, None]}]}},
    ],
    "/push": [{"push_source_name": "weather", "df": WEATHER, "to": "online"}],
    "/write-to-online-store": [{"feature_view_name": "weather", "df": WEATHER}],
    "/materialize": [{"start_ts": "2013-01-01T00:00:00Z", "end_ts": "2013-01-02T00:00:00Z", "feature_views": ["x"]}],
    "/materialize-incremental": [{"end_ts": "2013-01-02T00:00:00Z", "feature_views": ["x"]}],
}
QUERIES = ("/violations", "/openapi.json", "/health", "/ready", "/metrics", "/docs", "/", "/violations/x")
PRINTABLE = string.printable.replace("\r", "").replace("\n", "")


def asked(dice: random.Random, api: httpx.Client) -> httpx.Response:
    """One request: body, headers, path and query as they come."""
    headers = {}
    if dice.random() < 0.3:
        name = dice.choice(
            ("content-type", "accept", "authorization", "x-api-key", "x-forwarded-for", "cookie", "host")
        )
        headers[name] = "".join(dice.choices(PRINTABLE.strip(), k=dice.choice((0, 1, 10, 200))))
    if dice.random() < 0.25:
        query = "".join(dice.choices(PRINTABLE, k=dice.randrange(30)))
        name = dice.choice(("since", "until", "source", "limit", "producer", "x"))
        text = dice.choice((query, *TEXTS, "0001-01-01T00:00:00+14:00", "9" * 400))
        method = dice.choice(("GET", "GET", "POST", "DELETE", "PUT", "HEAD", "OPTIONS"))
        return api.request(method, dice.choice(QUERIES), params={name: text}, headers=headers)
    path = dice.choice(tuple(BODIES))
    body = copy.deepcopy(dice.choice(BODIES[path]))
    if dice.random() < 0.9:
        mutate_document(dice, body)
    if dice.random() < 0.1:
        body = value(dice)
    content = json.dumps(body, ensure_ascii=dice.random() < 0.5).encode("utf-8", "surrogatepass")
    content = mutated(dice, content) if dice.random() < 0.25 else content
    return api.post(
        path + dice.choice(("", "", "", "/", "?async=true", "?async=x", "%00")), content=content, headers=headers
    )


def raw(dice: random.Random, port: int) -> bytes | None:
    """What a server says to a request whose bytes are torn, before it closes the connection; None where it hangs."""
    body = json.dumps(GOOD).encode()
    head = "POST /get-online-features HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    head += f"content-length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port), 10) as connection:
        connection.settimeout(10)
        try:
            connection.sendall(mutated(dice, head.encode() + body))
            connection.shutdown(socket.SHUT_WR)
            found = b""
            while piece := connection.recv(65_536):
                found += piece
        except (ConnectionResetError, BrokenPipeError):
            return b""
        except TimeoutError:
            return None
    return found


def clock() -> int:
    """The tests' clock."""
    return int(NOW_US)


def test_requests_are_answered_or_refused(store: StoreClient, tmp_path: Path) -> None:
    """And what was asked well is answered right in between."""
    land(store)
    PlanStore(store, PROJECT).publish(make_plan())
    app = make_app(
        store,
        writes=lambda plan: Writes(
            plan, lambda view: RowWriter(store, plan.project, view, clock=clock), appender(tmp_path), clock, Limits()
        ),
        materializer=Materializer(tmp_path, tmp_path, {}, ["true"]),
    )
    faults: list[str] = []
    with serve(app) as api:
        right = api.post("/get-online-features", json=GOOD)
        assert right.status_code == 200
        for seed in seeds(200):
            dice = random.Random(seed)
            if dice.random() < 0.1:
                told = raw(dice, api.base_url.port or 0)
                if told is None or told.startswith(b"HTTP/1.1 5"):
                    faults.append(f"seed {seed}: {told!r}"[:400])
                continue
            try:
                response = asked(dice, api)
            except (httpx.InvalidURL, UnicodeEncodeError, ValueError, httpx.LocalProtocolError):
                continue  # the client itself refuses to send it
            if response.status_code >= 500 or "Traceback" in response.text:
                sent = response.request
                line = f"seed {seed}: {sent.method} {sent.url} {sent.content[:600]!r}: "
                faults.append(f"{line}{response.status_code} {response.text[:300]}")
            if not seed % 20:
                again = api.post("/get-online-features", json=GOOD)
                if (again.status_code, again.json().get("results")) != (200, right.json()["results"]):
                    faults.append(f"seed {seed}: another answer than before: {again.text[:300]}")
    report(faults)
