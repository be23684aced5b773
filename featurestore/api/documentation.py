"""How is the API described to tools? The parts of its OpenAPI document that handlers of raw bytes cannot say."""

from collections.abc import Sequence
from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from featurestore.api.answer import ARROW, JSON, ROWS
from featurestore.api.limits import Limits
from featurestore.api.request import FeatureRequest

_REQUEST_EXAMPLES = {
    "features": {
        "summary": "Features by reference",
        "value": {"features": ["weather:temp_f", "weather:wind_speed_mph"], "entities": {"origin": ["EWR", "JFK"]}},
    },
    "service": {
        "summary": "A feature service, as of an instant",
        "value": {
            "feature_service": "departure_delay",
            "entities": {"origin": ["EWR"], "carrier": ["UA"], "tailnum": ["N14228"], "route": ["EWR-IAH"]},
            "as_of": "2013-06-01T12:00:00Z",
        },
    },
}
_ANSWER_EXAMPLE = {
    "results": [
        {"values": ["EWR"], "statuses": ["PRESENT"], "event_timestamps": ["1970-01-01T00:00:00Z"]},
        {"values": [39.02], "statuses": ["PRESENT"], "event_timestamps": ["2013-01-01T11:00:00Z"]},
    ],
    "metadata": {"feature_names": ["origin", "temp_f"], "instant": "2013-01-01T11:24:00Z"},
}
_ROWS_EXAMPLE = {
    "instant": "2013-01-01T11:24:00Z",
    "feature_names": ["origin", "temp_f"],
    "rows": [
        {
            "values": {"origin": "EWR", "temp_f": 39.02},
            "statuses": {"origin": "PRESENT", "temp_f": "PRESENT"},
            "event_timestamps": {"origin": None, "temp_f": "2013-01-01T11:00:00Z"},
        }
    ],
}
_TEXTS = {"type": "array", "items": {"type": "string"}}
_FEAST_ANSWER = {
    "type": "object",
    "required": ["results", "metadata"],
    "properties": {
        "results": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["values", "statuses", "event_timestamps"],
                "properties": {"values": {"type": "array"}, "statuses": _TEXTS, "event_timestamps": _TEXTS},
            },
        },
        "metadata": {
            "type": "object",
            "required": ["feature_names", "instant"],
            "properties": {"feature_names": _TEXTS, "instant": {"type": "string", "format": "date-time"}},
        },
    },
}
_ROWS_ANSWER = {
    "type": "object",
    "required": ["instant", "feature_names", "rows"],
    "properties": {
        "instant": {"type": "string", "format": "date-time"},
        "feature_names": _TEXTS,
        "rows": {"type": "array", "items": {"type": "object"}},
    },
}
_ERROR = {
    "type": "object",
    "required": ["code", "message", "exists"],
    "properties": {"code": {"type": "string"}, "message": {"type": "string"}, "exists": _TEXTS},
}

FEATURES: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {JSON: {"schema": {"$ref": "#/components/schemas/FeatureRequest"}, "examples": _REQUEST_EXAMPLES}},
    },
    "responses": {
        "200": {
            "description": "The features, in the form that Accept names",
            "content": {
                JSON: {"schema": _FEAST_ANSWER, "example": _ANSWER_EXAMPLE},
                ROWS: {"schema": _ROWS_ANSWER, "example": _ROWS_EXAMPLE},
                ARROW: {"schema": {"type": "string", "format": "binary"}},
            },
        }
    },
}
"""What FastAPI adds to the operation of /get-online-features."""

ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"description": "The request is wrong; `message` says how", "content": {JSON: {"schema": _ERROR}}},
    "503": {
        "description": "The online store or the plan is away; ask again after Retry-After",
        "content": {JSON: {"schema": _ERROR}},
    },
}


def body_of(
    kind: type[msgspec.Struct], example: dict[str, Any], answers: dict[str, tuple[str, dict[str, Any], object]]
) -> dict[str, Any]:
    """What FastAPI adds to an operation: the body's schema with an example; by status what is told, its schema, one."""
    return {
        "requestBody": {
            "required": True,
            "content": {
                JSON: {"schema": {"$ref": f"#/components/schemas/{kind.__name__}"}, "example": example},
            },
        },
        "responses": {
            status: {"description": told, "content": {JSON: {"schema": schema, "example": answer}}}
            for status, (told, schema, answer) in answers.items()
        },
    }


def answering(told: str, example: dict[str, Any]) -> dict[int | str, dict[str, Any]]:
    """What is told of a GET that answers an object like the example."""
    schema = {"type": "object", "required": list(example)}
    return {200: {"description": told, "content": {JSON: {"schema": schema, "example": example}}}}


_SECURITY = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "An API key, or a token of the configured issuer"},
    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}
_UNLOCKED = ("/health", "/ready")


def describe(app: FastAPI, limits: Limits, bodies: Sequence[type[msgspec.Struct]] = ()) -> None:
    """Gives the application its OpenAPI document, with the schemas of requests and the limits in force."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(title=app.title, version="1", description=_told(limits), routes=app.routes)
            _, components = msgspec.json.schema_components(
                [FeatureRequest, *bodies], ref_template="#/components/schemas/{name}"
            )
            document.setdefault("components", {}).setdefault("schemas", {}).update(components)
            document["components"]["securitySchemes"] = _SECURITY
            for path, operations in document["paths"].items():
                for operation in operations.values() if path not in _UNLOCKED else ():
                    operation["security"] = [{"bearer": []}, {"key": []}]
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # the way FastAPI documents


def _told(limits: Limits) -> str:
    return (
        "Features of a Feast project, served from a plan. At most "
        f"{limits.entities} entities, {limits.features} features, {limits.values} values and {limits.body_bytes} bytes "
        "a request."
    )
