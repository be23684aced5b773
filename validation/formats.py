"""Regular expressions for the text formats of a contract's `logicalTypeOptions.format`.

They are judged like every pattern of a contract, by its one pattern engine; each means the same to Python and to RE2.
"""

from collections.abc import Mapping
from typing import Final

_LABEL: Final = "[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_BYTE: Final = "(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_IPV4: Final = rf"{_BYTE}(?:\.{_BYTE}){{3}}"
_HEX: Final = "[0-9A-Fa-f]"
_GROUP: Final = f"{_HEX}{{1,4}}"
_DATE: Final = "[0-9]{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12][0-9]|3[01])"
_CLOCK: Final = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:(?:[0-5][0-9]|60)(?:\.[0-9]+)?"
_OFFSET: Final = "(?:[Zz]|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
_TAILS: Final = "|".join(
    f"(?:{_GROUP}:){{1,{7 - n}}}(?::{_GROUP}){{1,{n}}}" if n else f"(?:{_GROUP}:){{1,7}}:" for n in range(7)
)
_IPV6: Final = (
    f"(?:{_GROUP}:){{7}}{_GROUP}|{_TAILS}|:(?::{_GROUP}){{1,7}}|::|"
    f"(?:{_GROUP}:){{6}}{_IPV4}|::(?:[Ff]{{4}}(?::0{{1,4}})?:)?{_IPV4}|(?:{_GROUP}:){{1,4}}:{_IPV4}"
)
PATTERNS: Final[Mapping[str, str]] = {
    "email": rf"^[A-Za-z0-9.!#$%&'*+/=?^_`{{|}}~-]{{1,64}}@(?:{_LABEL}\.)+{_LABEL}\Z",
    "uuid": rf"^{_HEX}{{8}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{12}}\Z",
    "uri": r"^[A-Za-z][A-Za-z0-9+.-]*:(?:[A-Za-z0-9._~:/?#@!$&'()*+,;=\[\]-]|%[0-9A-Fa-f]{2})+\Z",
    "hostname": rf"^(?:{_LABEL}\.)*{_LABEL}\.?\Z",
    "ipv4": rf"^{_IPV4}\Z",
    "ipv6": rf"^(?:{_IPV6})\Z",
    "date": rf"^{_DATE}\Z",
    "time": rf"^{_CLOCK}{_OFFSET}\Z",
    "date-time": rf"^{_DATE}[Tt ]{_CLOCK}{_OFFSET}\Z",
    "byte": r"^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?\Z",
}
"""Format -> the pattern of a whole text. `password` and `binary` say nothing of a text's form."""
