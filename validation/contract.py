"""What was promised about this data? An ODCS 3.x file as a frozen Contract."""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import msgspec

from validation.check import ARRIVAL, Expectation
from validation.errors import ContractError, did_you_mean
from validation.expectation import parse_expectation
from validation.odcs import Place
from validation.promise import Promise, promises
from validation.quality import DIMENSIONS, NotJudged, Stated, stated_by
from validation.relationship import Relationship, relationships
from validation.schema_rules import CONFORM, logical_type, not_judged, stated_by_schema
from validation.standard import check_fields

Severity = Literal["critical", "warning", "info"]
Mode = Literal["observe", "warn", "quarantine", "block"]
Boundary = Literal["producer", "event", "source", "training", "online_write", "online_serve"]
"""Where rows are judged: a producer's batch, an event, an offline source before it is materialized, a training set, a
write to the online store, and what the API has served."""
MODES: tuple[str, ...] = get_args(Mode)
BOUNDARIES: tuple[Boundary, ...] = get_args(Boundary)
SEVERITIES: tuple[str, ...] = get_args(Severity)
VIEW = "view:"
"""What goes before the name of a feature view that a contract is about."""
SERVICE = "service:"
"""What goes before the name of a feature service that a contract is about."""
_PARAMETER = "parameter."
_COLUMNS = ("column", "column_A", "column_B", "column_list", "column_set", "segments", "entities")
PERSONAL = ("pii", "personal")
"""Classifications of what is about a person."""
PII = (*PERSONAL, "restricted", "confidential", "secret", "sensitive")
"""Classifications whose values never appear in reports."""


class _Value(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A frozen value with keyword arguments only."""


class Column(_Value, frozen=True):
    """One promised column; `logical_type` is ODCS's (string, integer, number, …), empty where none is declared."""

    name: str
    logical_type: str
    required: bool = False
    unique: bool = False
    primary_key: bool = False
    classification: str = ""
    unit: str = ""
    """The custom property `unit`, as the producer writes it."""
    examples: tuple[object, ...] = ()
    """Values that the producer gives for those who read the contract."""
    zone: str = ""
    """The zone that naive instants are in (`logicalTypeOptions.defaultTimezone`); empty is UTC."""
    description: str = ""

    @property
    def personal(self) -> bool:
        """Whether its values are about a person: who holds them has duties that other secrets do not bring."""
        return self.classification.lower() in PERSONAL

    @property
    def masked(self) -> bool:
        """Whether its values are kept out of reports."""
        return self.classification.lower() in PII


class Rule(_Value, frozen=True):
    """One rule: a Great Expectations expectation type and its arguments, with what happens where it fails."""

    id: str
    expectation: str
    """Snake-case expectation type, e.g. expect_column_values_to_be_between."""
    arguments: dict[str, object]
    severity: Severity = "warning"
    mode: Mode = "observe"
    """observe: counted; warn: reported; quarantine: the row is set aside; block: the batch is refused."""
    modes: dict[Boundary, Mode] = {}
    """The mode at boundaries where it is not `mode`."""
    dimension: str = "conformity"
    description: str = ""

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns whose values it looks at, as far as its arguments name them one by one.

        >>> Rule(id="r", expectation="e", arguments={"column_A": "a", "column_B": "b"}).columns
        ('a', 'b')
        """
        found: list[str] = []
        for argument in _COLUMNS:
            value = self.arguments.get(argument)
            found += [value] if isinstance(value, str) else list(value) if isinstance(value, list | tuple | set) else []
        return tuple(found)

    def mode_at(self, boundary: Boundary) -> Mode:
        """What happens where the rule fails at a boundary.

        >>> rule = Rule(id="r", expectation="e", arguments={}, mode="warn", modes={"event": "quarantine"})
        >>> rule.mode_at("event"), rule.mode_at("producer")
        ('quarantine', 'warn')
        """
        return self.modes.get(boundary, self.mode)


class Contract(_Value, frozen=True):
    """A producer's promise about one source: schema, rules, owner."""

    name: str
    version: str
    source: str
    """The Feast source that the contract is about; `view:NAME` or `service:NAME` where it is about features."""
    columns: tuple[Column, ...]
    rules: tuple[Rule, ...]
    owner: str = ""
    producer: str = ""
    """Who sends the rows, where that is not the owner (custom property `producer`)."""
    support: str = ""
    description: str = ""
    sla: tuple[Promise, ...] = ()
    """Freshness, latency and volume."""
    unjudged: tuple[str, ...] = ()
    """Quality rules of the file that are text or another engine's: nothing here judges them."""
    relationships: tuple[Relationship, ...] = ()
    """Foreign keys: judged on a file where the other file lies beside it."""
    remarks: tuple[str, ...] = ()
    """What else of the file nothing judges, a sentence each."""

    @property
    def types(self) -> dict[str, str]:
        """Column name -> logical type."""
        return {column.name: column.logical_type for column in self.columns}

    def at(self, boundary: Boundary) -> "Contract":
        """The contract as it is kept at a boundary: each rule with its mode there."""
        return msgspec.structs.replace(
            self,
            rules=tuple(
                msgspec.structs.replace(rule, mode=rule.mode_at(boundary), modes={}) if rule.modes else rule
                for rule in self.rules
            ),
        )

    def expectations(self) -> tuple[Expectation, ...]:
        """The meaning of each rule, in order; raises ContractError."""
        return tuple(meaning_of(rule, self) for rule in self.rules)


def meaning_of(rule: Rule, contract: Contract) -> Expectation:
    """The meaning of one rule of a contract; a ContractError names both."""
    try:
        return parse_expectation(rule.expectation, rule.arguments, contract.types)
    except ContractError as error:
        raise ContractError(f"contract {contract.name!r}, rule {rule.id!r}: {error}") from error


def load_contract(path: Path, source: str | None = None) -> Contract:
    """The contract of a file about one source; `source` says which where the file has several schema objects.

    Raises ContractError with file, line and path.
    """
    found = load_contract_file(path)
    if source is None and len(found) == 1:
        return found[0]
    named = {contract.source: contract for contract in found}
    if source in named:
        return named[source]
    if source is None:
        raise ContractError(
            f"{path}: schema: found {len(found)} schema objects{': ' if named else ''}{', '.join(named)}; "
            "expected one, or --source with the name of one"
        )
    raise ContractError(f"{path}: schema: no schema object {source!r}; {did_you_mean(source, named)}")


def load_contract_file(path: Path) -> tuple[Contract, ...]:
    """The Contracts of an Open Data Contract Standard 3.x file, one for each schema object.

    Custom properties that are ours: `feastSource` of the schema object (else its name is the source), or instead
    `feastView` or `feastService` (the contract is about features as they go out), `mode` of a
    quality rule or property (observe, warn, quarantine, block) and `mode.BOUNDARY`, its mode at one boundary,
    `producer` of the contract (who sends the rows; else its team) and `schemaMode`, the mode of what the schema
    promises, and `unit` of a property. Raises ContractError with file, line and path.
    """
    root = Place.open(Path(path))
    if root.text("kind", "") != "DataContract" or not root.text("apiVersion", "").startswith("v3."):
        raise root.error(
            f"found kind {root.value.get('kind')!r}, apiVersion {root.value.get('apiVersion')!r}; "
            "expected kind: DataContract, apiVersion: v3.1.0"
        )
    remarks = check_fields(root)
    root.text("id")
    root.text("version")
    if root.value.get("status") is None:
        remarks.append("no status is given, which version 3.1 of the standard requires")
    if root.value.get("slaDefaultElement") is not None:
        remarks.append("slaDefaultElement is not judged: each of slaProperties names its own element")
    schemas = root.items("schema")
    names = [_about(schema) for schema in schemas]
    if twice := [name for name in names if names.count(name) > 1]:
        raise root.child("schema").error(f"schema object {twice[0]!r} is given twice")
    return tuple(_contract(root, schema, remarks, alone=len(schemas) == 1) for schema in schemas)


def _contract(root: Place, schema: Place, remarks: list[str], *, alone: bool) -> Contract:
    columns = tuple(_column(item) for item in schema.items("properties"))
    names = [column.name for column in columns]
    if twice := [name for name in names if names.count(name) > 1]:
        raise schema.child("properties").error(f"property {twice[0]!r} is given twice")
    team, support = root.child("team"), root.items("support")
    source = _about(schema)
    name = root.text("name", root.text("id"))
    contract = Contract(
        name=name if alone else f"{name}.{schema.text('name')}",
        version=root.text("version"),
        source=source,
        columns=columns,
        rules=(),
        owner=team.text("name", "") if isinstance(team.value, dict) else "",
        producer=root.custom_text("producer", ""),
        support=support[0].text("url", support[0].text("channel", "")) if support else "",
        description=root.child("description").text("purpose", "") if root.mapping("description") else "",
        relationships=relationships(schema, source, names),
    )
    if not columns:
        remarks = [*remarks, f"schema object {schema.text('name')!r} names no properties: its columns are not judged"]
    for item in schema.items("properties"):
        remarks = [*remarks, *not_judged(item, item.text("name"))]
    rules, unjudged, more = _rules(root, schema, contract)
    instants = (*(column.name for column in columns if column.logical_type == "timestamp"), ARRIVAL)
    sla, others = promises(root, contract.source, instants, object_name=schema.text("name"), columns=names)
    for promise in sla:
        if promise.id in {rule.id for rule in rules}:
            raise root.child("slaProperties").error(f"id {promise.id!r} is a rule's; give the promise another")
    return msgspec.structs.replace(
        contract, rules=rules, sla=sla, unjudged=(*unjudged, *others), remarks=(*remarks, *more)
    )


def load_contracts(folder: Path) -> dict[str, Contract]:
    """Every `*.odcs.yaml` of a folder, by source; two contracts of one source are refused."""
    return {contract.source: contract for file in load_contract_files(folder) for contract in file}


def load_contract_files(folder: Path) -> tuple[tuple[Contract, ...], ...]:
    """The contracts of each `*.odcs.yaml` of a folder; two contracts of one source are refused."""
    found: dict[str, Path] = {}
    files = []
    for path in sorted(Path(folder).glob("*.odcs.yaml")):
        files.append(load_contract_file(path))
        for contract in files[-1]:
            if contract.source in found:
                raise ContractError(
                    f"{path}: source {contract.source!r} has a contract already: {found[contract.source]}"
                )
            found[contract.source] = path
    return tuple(files)


def _about(schema: Place) -> str:
    found = {
        prefix: name
        for prefix, kind in (("", "feastSource"), (VIEW, "feastView"), (SERVICE, "feastService"))
        if (name := schema.custom_text(kind, ""))
    }
    if len(found) > 1:
        raise schema.error("found several of feastSource, feastView, feastService; a contract is about one thing")
    return next((prefix + name for prefix, name in found.items()), schema.text("name"))


def _column(item: Place) -> Column:
    return Column(
        name=item.text("name"),
        logical_type=logical_type(item),
        required=item.flag("required"),
        unique=item.flag("unique"),
        primary_key=item.flag("primaryKey"),
        classification=item.text("classification", ""),
        unit=item.custom_text("unit", ""),
        zone=item.child("logicalTypeOptions").text("defaultTimezone", "") if item.mapping("logicalTypeOptions") else "",
        description=item.text("description", ""),
        examples=_examples(item.child("examples")),
    )


def _examples(place: Place) -> tuple[object, ...]:
    if not isinstance(place.value, list | None):
        raise place.error(f"found {place.value!r}; expected a list of values")
    return tuple(place.value or ())


def _rules(root: Place, schema: Place, contract: Contract) -> tuple[tuple[Rule, ...], tuple[str, ...], tuple[str, ...]]:
    """The rules, the ids of those that are left to others, and remarks on further ones that are not judged."""
    rules: dict[str, Rule] = {}
    taken = _Taken([], [], [])
    for item in schema.items("properties"):
        column = item.text("name")
        for number, quality in enumerate(item.items("quality")):
            _take(quality, column, f"{column}_{number}", taken)
    for number, quality in enumerate(schema.items("quality")):
        _take(quality, None, f"{contract.source}_{number}", taken)
    parameters = _parameters(root)
    promised = [
        (place, rule_id, _filled(place, stated, parameters), mode) for place, rule_id, stated, mode in taken.promised
    ]
    for place, rule_id, stated, rule_mode in promised:
        rule = _rule(place, rule_id, stated, rule_mode)
        if rule.id in rules:
            raise place.error(f"rule id {rule.id!r} is given twice")
        rules[rule.id] = _proved(place, rule, contract)
    explicit = {(stated.expectation, _subject(stated)) for _, _, stated, _ in promised}
    for place, rule_id, stated in _schema_promises(schema, contract):
        # A quality rule that says the same says it with its own mode and severity.
        if stated.expectation != CONFORM and (stated.expectation, _subject(stated)) in explicit:
            continue
        unused = rule_id if rule_id not in rules else f"{rule_id}_by_schema"
        rule = _proved(place, _by_schema(root, place, unused, stated), contract)
        rules[rule.id] = _within_reach(rule, contract)
    return tuple(rules.values()), tuple(taken.unjudged), tuple(taken.remarks)


def _subject(stated: Stated) -> object:
    several = stated.arguments.get("column_list")
    return frozenset(several) if isinstance(several, list) else stated.arguments.get("column")


def _schema_promises(schema: Place, contract: Contract) -> list[tuple[Place, str, Stated]]:
    """What the schema promises: of each column, of the primary key, and that the columns are there."""
    found: list[tuple[Place, str, Stated]] = []
    items = schema.items("properties")
    keys = [item for item in items if item.flag("primaryKey")]
    for item in items:
        alone = keys == [item]
        column = item.text("name")
        found += [(item, f"{column}{one.suffix}", one) for one in stated_by_schema(item, column, alone_key=alone)]
    if len(keys) > 1:
        ordered = sorted(keys, key=lambda item: item.value.get("primaryKeyPosition") or len(keys))
        key = {"column_list": [item.text("name") for item in ordered], "ignore_row_if": "any_value_is_missing"}
        unique = Stated("expect_compound_columns_to_be_unique", key, "uniqueness")
        found.append((schema, f"{contract.source}_primary_key", unique))
    if items and not contract.source.startswith((VIEW, SERVICE)):
        present = {"column_set": [item.text("name") for item in items], "exact_match": False}
        columns = Stated("expect_table_columns_to_match_set", present, "completeness")
        found.append((schema, f"{contract.source}_columns", columns))
    return found


def _by_schema(root: Place, place: Place, rule_id: str, stated: Stated) -> Rule:
    said = place.custom_text("mode", "") or root.custom_text("schemaMode", "")
    rule = _rule(place, rule_id, stated, place.custom("mode", MODES, root.custom("schemaMode", MODES, "observe")))
    if stated.suffix == "_type" and not said:
        # What is not of its type cannot stand in a table beside what is: as an event that cannot be decoded.
        return msgspec.structs.replace(rule, modes={"producer": "quarantine", **rule.modes})
    return rule


def _within_reach(rule: Rule, contract: Contract) -> Rule:
    """The rule, which warns where it is to set rows aside and no single row decides it."""
    if meaning_of(rule, contract).by_row:
        return rule
    modes: dict[Boundary, Mode] = {at: "warn" if mode == "quarantine" else mode for at, mode in rule.modes.items()}
    return msgspec.structs.replace(rule, mode="warn" if rule.mode == "quarantine" else rule.mode, modes=modes)


def _proved(place: Place, rule: Rule, contract: Contract) -> Rule:
    """The rule, whose arguments mean something and can be written into a plan."""
    try:
        meaning_of(rule, contract)
        msgspec.json.encode(rule)
    except (ContractError, TypeError) as error:
        raise place.error(str(error.__cause__ or error)) from error
    return rule


def _parameters(root: Place) -> dict[str, object]:
    """The contract's parameters: custom properties `parameter.NAME`."""
    return {
        name.removeprefix(_PARAMETER): item.child("value").value
        for item in root.items("customProperties")
        if (name := item.text("property")).startswith(_PARAMETER)
    }


def _filled(place: Place, stated: Stated, parameters: Mapping[str, object]) -> Stated:
    """The rule with each `{"$PARAMETER": NAME}` among its arguments, however deep, replaced by its value."""

    def filled(value: object) -> object:
        if isinstance(value, Mapping):
            if set(value) != {"$PARAMETER"}:
                return {name: filled(inner) for name, inner in value.items()}
            name = str(value["$PARAMETER"])
            if name not in parameters:
                raise place.error(f"no parameter {name!r} of the contract; {did_you_mean(name, parameters)}")
            return parameters[name]
        return [filled(inner) for inner in value] if isinstance(value, list) else value

    return dataclasses.replace(stated, arguments={name: filled(value) for name, value in stated.arguments.items()})


class _Taken(NamedTuple):
    """What was read of a contract's quality rules."""

    promised: list[tuple[Place, str, Stated, str]]
    unjudged: list[str]
    remarks: list[str]


def _take(quality: Place, column: str | None, fallback: str, taken: _Taken) -> None:
    rule_id = quality.text("id", quality.text("name", fallback))
    try:
        stated = stated_by(quality, column)
    except NotJudged as reason:
        if quality.text("type", "library") == "library":
            taken.remarks.append(f"rule {rule_id!r} {reason}")
        else:
            taken.unjudged.append(rule_id)
        return
    mode = quality.custom("mode", MODES, "observe")
    taken.promised.extend((quality, rule_id + one.suffix, one, mode) for one in stated)


def _rule(place: Place, rule_id: str, stated: Stated, mode: str) -> Rule:
    severity = {"error": "critical"}.get(place.text("severity", "warning"), place.text("severity", "warning"))
    if severity not in SEVERITIES:
        raise place.child("severity").error(f"found {severity!r}; allowed: {', '.join(SEVERITIES)}")
    return Rule(
        id=rule_id,
        expectation=stated.expectation,
        arguments=dict(stated.arguments),
        severity=severity,  # type: ignore[arg-type]  # one of SEVERITIES
        mode=mode,  # type: ignore[arg-type]  # one of MODES
        modes=_modes(place),
        dimension=place.choice("dimension", DIMENSIONS, stated.dimension),
        description=place.text("description", ""),
    )


def _modes(place: Place) -> dict[Boundary, Mode]:
    """The modes of single boundaries: custom properties `mode.event`, `mode.training`, …"""
    found: dict[Boundary, Mode] = {}
    for item in place.items("customProperties"):
        name = item.text("property")
        if not name.startswith("mode."):
            continue
        boundary = name.removeprefix("mode.")
        if boundary not in BOUNDARIES:
            raise item.child("property").error(f"no boundary {boundary!r}; {did_you_mean(boundary, BOUNDARIES)}")
        found[boundary] = item.choice("value", MODES)  # type: ignore[assignment]  # one of MODES
    return found


def lint(contract: Contract) -> list[str]:
    """What a reviewer would say of a contract that loads; empty when nothing is amiss.

    >>> lint(Contract(name="c", version="1", source="s", columns=(), rules=(), owner="o", support="x"))[0]
    'no description is given'
    """
    found = [f"no {name} is given" for name in ("owner", "support", "description") if not getattr(contract, name)]
    meanings = contract.expectations()
    if "expect_table_row_count_to_be_between" not in {rule.expectation for rule in contract.rules}:
        found.append(
            "no rule says how many rows a batch has: an empty one would pass (metric rowCount, mustBeGreaterThan: 0)"
        )
    for rule, meaning in zip(contract.rules, meanings, strict=True):
        if "quarantine" in {rule.mode, *rule.modes.values()} and not meaning.by_row:
            found.append(
                f"rule {rule.id!r} cannot quarantine: {why_not_by_row(meaning)}; allowed: observe, warn, block"
            )
    found += contract.remarks
    found += [
        f"relationship {one.id!r} ({one.describe()}) is judged by `contract test` alone, where the file of "
        f"{one.other or 'the other contract'!r} lies beside the data"
        for one in contract.relationships
    ]
    found += [f"rule {rule_id!r} is text or another engine's: nothing here judges it" for rule_id in contract.unjudged]
    found += _silent_columns(contract, meanings)
    return found


def _silent_columns(contract: Contract, meanings: Iterable[Expectation]) -> list[str]:
    read = {name for meaning in meanings for name in meaning.columns}
    return [
        f"column {column.name!r} is required and no rule reads it"
        for column in contract.columns
        if column.required and column.name not in read
    ]


def why_not_by_row(meaning: Expectation) -> str:
    """Why one row and its arrival cannot decide an expectation."""
    if meaning.check is None:
        return f"{meaning.type} has no compiled form and is judged by Great Expectations on batches"
    if meaning.mostly < 1:
        return "mostly is a share of many rows"
    return f"{meaning.type} looks at more than one row"
