"""What goes wrong in the feature store, told so that the reader can act.

Every message names the place, what was found, what exists and what to do. HTTP statuses live in the API alone.
"""

from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from validation.errors import PlatformError, did_you_mean
from validation.interrupts import interrupted

if TYPE_CHECKING:
    # Errors are imported by whatever says `--help`: contracts, which read YAML, would cost it a tenth of a second.
    from validation.verdict import RuleVerdict, Verdict


class FeatureStoreError(PlatformError):
    """A failure of the feature store: an operation that was right to ask for did not succeed."""


class UsageError(FeatureStoreError):
    """The request itself is wrong: an unknown name, a missing column, a value of the wrong type."""

    exit_code = 2


class ConfigurationError(UsageError):
    """The configuration is missing something or contradicts itself."""


class Untrusted(ConfigurationError):
    """A plan that is torn, not signed, or signed with a key that this process does not have: it is not used."""


class DefinitionError(UsageError):
    """A definition in the feature repo cannot be honoured as written."""


class UnknownName(UsageError):
    """A name that nothing answers to; `existing` lists what would have."""

    def __init__(self, kind: str, name: str, existing: Iterable[str]) -> None:
        self.kind, self.name, self.existing = kind, name, sorted(existing)
        super().__init__(f"no {kind} {name!r}; {did_you_mean(name, self.existing)}")


class SourceError(FeatureStoreError):
    """A source that is missing, torn, empty, or lacks what its definition names."""


class ContractBroken(FeatureStoreError):
    """Data broke a rule that blocks, or a rule that guards it could not be judged; `verdict` has all counts.

    `exit_code` tells the two apart: 5 for bad data, 3 where nothing but checks broke.
    """

    BAD_DATA, CHECK_BROKE = 5, 3

    def __init__(self, refused: str, verdict: "Verdict", rules: Sequence[str]) -> None:
        self.verdict, self.rules = verdict, tuple(rules)
        bad = any(verdict.rule(rule_id).outcome == "failed" for rule_id in rules)
        self.exit_code = self.BAD_DATA if bad else self.CHECK_BROKE
        told = ", ".join(_said(verdict.rule(rule_id)) for rule_id in rules)
        super().__init__(f"{refused}: contract {verdict.contract!r} {verdict.version}, {verdict.rows} rows: {told}")


def _said(rule: "RuleVerdict") -> str:
    if rule.outcome == "broken":
        return f"{rule.rule_id}: the check broke: {rule.reason}"
    if rule.unexpected is None:
        return f"{rule.rule_id}: observed {rule.observed!r}"
    return f"{rule.rule_id}: {rule.unexpected} of {rule.evaluated} rows"


class ViewsFailed(FeatureStoreError):
    """Some views (or topics) could not be done, and all others were; `failed` says why, by name.

    `exit_code` is that of their errors, the greatest of broken contracts', and 1 where they failed in several ways.
    """

    def __init__(
        self, done: str, failed: Mapping[str, PlatformError], of: int | None = None, *, kind: str = "view"
    ) -> None:
        self.failed = failed = dict(sorted(failed.items()))
        codes = {error.exit_code for error in failed.values()}
        contracts = {ContractBroken.BAD_DATA, ContractBroken.CHECK_BROKE}
        self.exit_code = max(codes) if len(codes) == 1 or codes <= contracts else 1
        count = f"{len(failed)} of {of} {kind}s" if of is not None else f"{len(failed)} {kind}{'s'[: len(failed) - 1]}"
        told = "; ".join(f"{name}: {error}" for name, error in failed.items())
        self.__cause__ = next(iter(failed.values()))
        super().__init__(f"{count} could not be {done} ({', '.join(failed)}), all others were: {told}")


class StoreUnavailable(FeatureStoreError):
    """The online store did not answer; the call may be repeated."""


class StoreRefused(StoreUnavailable):
    """The online store answered and refused a command; `code` is the first word of its reply, such as NOREPLICAS."""

    def __init__(self, message: str, code: str) -> None:
        self.code = code
        super().__init__(message)


class StoreDenied(StoreRefused, ConfigurationError):
    """The online store refused this user or password; it may pass, while users are changed."""


def failure_of(done: str, failed: Mapping[str, PlatformError], of: int) -> PlatformError:
    """The error for views of which some failed: ContractBroken where a contract blocks one, and nothing else failed."""
    first = next(iter(failed.values()))
    return first if len(failed) == 1 and isinstance(first, ContractBroken) else ViewsFailed(done, failed, of)


@contextmanager
def failing(name: str, failed: MutableMapping[str, PlatformError]) -> Iterator[None]:
    """Note why one of several views fails, so that the others are done: no error leaves the block but two kinds.

    A store that is away fails every view, and a process that was asked to stop does none: both are raised. An error
    that is not the platform's own is noted as the bug that it is.

    >>> failed = {}
    >>> with failing("rides", failed):
    ...     raise SourceError("no such file")
    >>> failed
    {'rides': SourceError('no such file')}
    """
    try:
        yield
    except StoreUnavailable:
        raise
    except Exception as error:
        if interrupted():
            raise
        if isinstance(error, PlatformError):
            failed[name] = error
        else:
            line = " ".join(f"{type(error).__name__}: {error}".split())
            failed[name] = FeatureStoreError(line if isinstance(error, OSError) else f"{line}; this is a bug")
            failed[name].__cause__ = error


class StaleStore(FeatureStoreError):
    """The online store holds nothing, or something older than what was asked for."""


class NotExact(UsageError):
    """The instant asked for cannot be answered exactly, and approximations are never given."""


class VersionDropped(StaleStore):
    """A version of a view that the plan in hand reads is gone: load the plan in force, and read by that."""
