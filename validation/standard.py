"""Fields of the Open Data Contract Standard 3.x, with what becomes of each, and the check that a file has no other.

`FIELDS` holds the fields of every mapping that the standard defines. A test walks the standard's own JSON schema and
fails for a field that is missing here, and another one compares `docs/contracts.md` with this table.
"""

from collections.abc import Mapping
from typing import Final, Literal

from validation.errors import did_you_mean
from validation.odcs import Place

Use = Literal["judged", "named", "shown"]
"""judged: data is held to it; named: `lint` says that it is not judged; shown: it tells people something, and says
nothing about rows that could be judged."""

_TEXTS: Final = ("businessName", "description", "authoritativeDefinitions", "tags", "customProperties", "synonyms")
_SHOWN: Final[Mapping[str, tuple[str, ...]]] = {
    "DataContract": (
        *("apiVersion", "kind", "id", "name", "version", "status", "tenant", "tags", "servers", "dataProduct"),
        *("description", "domain", "context", "support", "price", "team", "roles", "authoritativeDefinitions"),
        *("customProperties", "contractCreatedTs"),
    ),
    "Description": ("usage", "purpose", "limitations", "authoritativeDefinitions", "customProperties"),
    "SchemaObject": (
        *("id", "name", "physicalType", "deprecated", "logicalType", "physicalName", "dataGranularityDescription"),
        *("context", *_TEXTS),
    ),
    "SchemaProperty": (
        *("id", "name", "deprecated", "physicalName", "semanticType", "partitioned", "partitionKeyPosition"),
        *("classification", "encryptedName", "transformSourceObjects", "transformLogic", "transformDescription"),
        *("criticalDataElement", *_TEXTS),
    ),
    "DataQuality": (
        *("id", "authoritativeDefinitions", "businessImpact", "customProperties", "description", "dimension", "method"),
        *("name", "schedule", "scheduler", "severity", "tags"),
    ),
    "Relationship": ("id", "type", "customProperties"),
    "ServiceLevelAgreementProperty": (
        *("id", "driver", "description", "scheduler", "schedule", "customProperties", "authoritativeDefinitions"),
    ),
    "Team": ("id", "name", "description", "members", "tags", "customProperties", "authoritativeDefinitions"),
    "TeamMember": (
        *("id", "username", "name", "description", "role", "dateIn", "dateOut", "replacedByUsername", "comment"),
        *("tags", "customProperties", "authoritativeDefinitions"),
    ),
    "Role": (
        *("id", "role", "description", "access", "firstLevelApprovers", "secondLevelApprovers", "customProperties"),
    ),
    "SupportItem": (*("id", "channel", "url", "description", "tool", "scope", "invitationUrl", "customProperties"),),
    "Pricing": ("id", "priceAmount", "priceCurrency", "priceUnit"),
    "EnumValue": ("label", "id", "description", "customProperties", "authoritativeDefinitions", "tags"),
    "AuthoritativeDefinition": ("id", "type", "url", "description"),
    "Synonym": ("id", "synonym", "description", "locale", "source", "status", "customProperties"),
    "CustomProperty": ("id", "property", "value", "description", "vendor"),
    "LogicalTypeOptions": ("distanceMetric", "embeddingModel", "embeddingModelVersion", "defaultTimezone"),
}
_JUDGED: Final[Mapping[str, tuple[str, ...]]] = {
    "DataContract": ("schema", "slaProperties"),
    "SchemaObject": ("properties", "quality", "relationships"),
    "SchemaProperty": (
        *("primaryKey", "primaryKeyPosition", "logicalType", "logicalTypeOptions", "physicalType", "required"),
        *("unique", "examples", "enum", "relationships", "quality", "properties", "items", "map"),
    ),
    "LogicalTypeOptions": (
        *("minLength", "maxLength", "pattern", "format", "minimum", "maximum", "exclusiveMinimum"),
        *("exclusiveMaximum", "multipleOf", "minItems", "maxItems", "uniqueItems", "minProperties"),
        *("maxProperties", "required", "dimensions", "elementType"),
    ),
    "Map": ("key", "value"),
    "DataQuality": (
        *("type", "metric", "rule", "arguments", "unit", "engine", "implementation"),
        *("mustBe", "mustNotBe", "mustBeGreaterThan", "mustBeGreaterOrEqualTo", "mustBeLessThan"),
        *("mustBeLessOrEqualTo", "mustBeBetween", "mustNotBeBetween"),
    ),
    "Relationship": ("from", "to"),
    "ServiceLevelAgreementProperty": ("property", "value", "valueExt", "unit", "element"),
    "EnumValue": ("value",),
}
_NAMED: Final[Mapping[str, tuple[str, ...]]] = {
    "DataContract": ("slaDefaultElement",),
    "LogicalTypeOptions": ("timezone", "normalized"),
    "DataQuality": ("query",),
}
FIELDS: Final[Mapping[str, Mapping[str, Use]]] = {
    name: {
        **dict.fromkeys(_JUDGED.get(name, ()), "judged"),
        **dict.fromkeys(_NAMED.get(name, ()), "named"),
        **dict.fromkeys(_SHOWN.get(name, ()), "shown"),
    }
    for name in dict.fromkeys((*_JUDGED, *_SHOWN))
}
"""Mapping of the standard -> field -> what becomes of it. The fields of a server depend on its type, and those of a
context are free: both are shown whole."""

_INSIDE: Final[Mapping[tuple[str, str], str]] = {
    ("DataContract", "servers"): "Server",
    ("DataContract", "description"): "Description",
    ("DataContract", "schema"): "SchemaObject",
    ("DataContract", "slaProperties"): "ServiceLevelAgreementProperty",
    ("DataContract", "support"): "SupportItem",
    ("DataContract", "price"): "Pricing",
    ("DataContract", "team"): "Team",
    ("DataContract", "roles"): "Role",
    ("Team", "members"): "TeamMember",
    ("SchemaObject", "properties"): "SchemaProperty",
    ("SchemaObject", "quality"): "DataQuality",
    ("SchemaObject", "relationships"): "Relationship",
    ("SchemaProperty", "logicalTypeOptions"): "LogicalTypeOptions",
    ("SchemaProperty", "properties"): "SchemaProperty",
    ("SchemaProperty", "items"): "SchemaProperty",
    ("SchemaProperty", "map"): "Map",
    ("SchemaProperty", "enum"): "EnumValue",
    ("SchemaProperty", "quality"): "DataQuality",
    ("SchemaProperty", "relationships"): "Relationship",
    ("Map", "key"): "SchemaProperty",
    ("Map", "value"): "SchemaProperty",
}
_ANYWHERE: Final = {
    "customProperties": "CustomProperty",
    "authoritativeDefinitions": "AuthoritativeDefinition",
    "synonyms": "Synonym",
}
_FORMER: Final = frozenset({"isUnique", "isNullable", "isPrimary", "isPrimaryKey", "clusterStatus", "validValues"})
"""Fields that version 2 had, and that files of version 3 still carry."""
DEPTH: Final = 32
"""How deep properties may lie within properties."""


def check_fields(place: Place, mapping: str = "DataContract", depth: int = 0) -> list[str]:
    """Refuse a misspelt field of the standard, wherever it stands, and list the fields that are no field of it.

    Raises ContractError with the line where the name is close to one of the standard's.
    """
    if depth > 2 * DEPTH:
        raise place.error(f"properties lie more than {DEPTH} levels deep")
    if isinstance(place.value, list):
        # A team is a mapping in 3.1 and a list of members in 3.0.
        member = "TeamMember" if mapping == "Team" else mapping
        return [line for n in range(len(place.value)) for line in check_fields(place.child(n), member, depth + 1)]
    if not isinstance(place.value, dict):
        return []  # the reader of the field says what it expects
    if mapping == "Server":
        return _check_server(place)
    known, found = FIELDS[mapping], []
    for key in place.value:
        if key not in known:
            where = place.child(str(key))
            if key in _FORMER:
                found.append(f"line {where.line}: key {key!r} is of version 2: nothing here judges it")
                continue
            advice = did_you_mean(str(key), known)
            if advice.startswith("did you mean"):
                raise where.error(f"unknown key {key!r}; {advice}")
            found.append(f"line {where.line}: key {key!r} is none of the standard: nothing here judges it")
            continue
        inside = _ANYWHERE.get(str(key)) or _INSIDE.get((mapping, str(key)))
        if inside is not None:
            found += check_fields(place.child(str(key)), inside, depth + 1)
    return found


def _check_server(place: Place) -> list[str]:
    """A server has fields of its type's own, which anybody may define; its two required ones may be misspelt."""
    for required in ("server", "type"):
        for key in place.value:
            if required not in place.value and did_you_mean(str(key), [required]).startswith("did you mean"):
                raise place.child(str(key)).error(f"unknown key {key!r}; did you mean {required!r}?")
    return []
