"""No regular expression that an event or a write meets runs without bound, and each means what Python means by it."""

import random
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from featurestore.cli.main import build_app
from validation.compiled.rows import compile_rows
from validation.contract import Column, Contract, Rule
from validation.errors import ContractError
from validation.expectation import parse_expectation
from validation.pattern import NotLinear, linear, searcher

LONG = 30_000
EVIL = [
    (r"^(a+)+$", "a" * LONG + "!"),
    (r"^(a|aa)+$", "a" * LONG + "!"),
    (r"^(a|a)*$", "a" * LONG + "b"),
    (r"^(a*)*$", "a" * LONG + "b"),
    (r"(a*)*b", "a" * LONG),
    (r"^(a?){50}a{50}$", "a" * 49 + "!" * LONG),
    (r"(x+x+)+y", "x" * LONG),
    (r"(.*)*=", "a" * LONG),
    (r"^(.*?,){20}P", "1," * (LONG // 2)),
    (r"(.*,)*x$", "1," * (LONG // 2)),
    (r"^([a-zA-Z0-9])(([\-.]|[_]+)?([a-zA-Z0-9]+))*(@){1}[a-z0-9]+[.]{1}(([a-z]{2,3})|([a-z]{2,3}[.]{1}[a-z]{2,3}))$",
     "a" * LONG + "!"),
    (r"^([0-9]+)*-$", "1" * LONG),
    (r"^(([a-z])+.)+[A-Z]([a-z])+$", "a" * LONG),
    (r"^\s+|\s+$", "a" + " " * LONG + "a"),
    (r"\s*,\s*$", " " * LONG + "x"),
    (r"^(\w+\s?)*$", "word " * (LONG // 5) + "!"),
    (r"^(\d+\.?)*x$", "1" * LONG),
    (r"^(-?\d*)*\.$", "1" * LONG),
    (r"(\w+)*@(\w+)*\.com", "a" * LONG),
    (r"^(?:(?:[^<]|<[^b])*)*<b>$", "<" * LONG),
    (r"(?:a|b|ab)*c", "ab" * (LONG // 2)),
    (r"^(?:.|\n)*?x$", "a" * LONG),
    (r"(?i)^(s|S|ſ)*$", "s" * LONG + "!"),
    (r"^(https?://)?([\da-z.-]+)\.([a-z.]{2,6})([/\w .-]*)*/?$", "http://a.b/" + "a/" * (LONG // 2) + "!"),
    (r"^[\w.+-]+@([\w-]+\.)+[\w-]{2,4}$", "a@" + "a." * (LONG // 2)),
    (r"\A(.+)+\Z.", "a" * LONG),
    (r"(?:(?:a+)+)+b", "a" * LONG),
    (r"^(?:a{0,5}){0,100}$", "a" * LONG),
    (r"(a|b)*[ab]{200}c", "ab" * (LONG // 2)),
    (r"^(?:é|e\u0301|\w)+$", "é" * LONG + "!"),
    (r"^((a+)*(b+)*)*c", "ab" * (LONG // 2)),
    (r"(\S+\s+)*end$", "x " * (LONG // 2)),
    (r"^\w{1,200}\d$", "a" * LONG),
    (r"<!--(.*?)*-->", "<!--" * (LONG // 4)),
    (r"([^\"\\]|\\.)*\"$", "\\a" * (LONG // 2)),
]  # fmt: skip
REFUSED = [
    r"(?=a)b", r"(?!a)b", r"(?<=a)b", r"(?<!a)b", r"(a)\1", r"(?P<n>a)(?P=n)", r"(a)?(?(1)b|c)", r"(?>a+)b", r"a++",
    r"a*+b", r"\bword\b", r"\Bx", r"(a$)+", r"a$b", r"x{1001}", r"(?:a{100}){100}", r"(\w{500}){20}", "a" * 3000,
    "(" * 60 + "a" + ")" * 60, "(", "[", r"\ud800", "(?", "*a", r"(?P<n", "a" * 200 + "{3,2}",
]  # fmt: skip
AGREEING = [
    "^[A-Z]{2}$", r"\d+", r"^\D$", r"^\w+$", r"\W", r"\s", r"^\S+$", r"[\w.]+@[\w-]+", r"[^\W\d_]", r"[^\s\S]", "a$",
    "^$", "a$|^b", "(a|b$)", r"a\Z", r"\Aa", "(?i)straße", "(?i)k", "(?i)[a-z]+$", "(?i)İ", "(?i)[^s]", "(?ai)k",
    "(?m)^b$", "(?s)a.b", "a.b", "(?x) a  b # c", "(?a)\\w", "(?a)\\bfoo\\b", "(?:ab)+?c", "(?P<n>x)y", "(?i:a)b",
    "(?s:.)x",
    "a{2,3}",
    "a{,2}b", "x*?y", r"\.", r"[\]\-^]", r"\x41", r"\u00e9", r"[\u0400-\u04ff]+", "é|ï", "%_", "", r"[^\n]", "\n$",
    "a\\$",
    r"[a\d]", r"[^a\D]", r"\N{BULLET}", "(?i)ǆ", "(?i)ς", "(?i)[à-ö]",
]  # fmt: skip
TEXTS = [
    "", "a", "b", "A", "AB", "AB\n", "AB\n\n", "a\n", "\na", "a\nb", "ab", "aab", "aabb", "foo bar", "éfooé", "straße",
    "STRASSE", "STRAßE", "\u212a", "K", "k", "\u017f", "ı", "İ", "i\u0307", "٣", "²", "Ⅷ", "_", "-", "]", "^", "\u2028",
    "\x1c", "\x85", "\xa0", "\ufeff", "漢", "𝟘", "ab c", "xy", "Xy", "aB", "é", "ï", "%_", "a$", "•", "ǅ", "Ǆ", "σ",
    "Σ", "Ö", "ö", "\x00", "a\x00b", "x", "aaaa", "1.5", "a@b", "B\n",
]  # fmt: skip


@pytest.mark.parametrize(("pattern", "attack"), EVIL, ids=range(len(EVIL)))
def test_a_pattern_that_backtracks_is_searched_in_linear_time_or_refused(pattern: str, attack: str) -> None:
    """Half a second is enough for 30,000 characters; what the engine cannot bound is refused when it is compiled."""
    try:
        found = searcher(pattern)
    except NotLinear:
        return
    began = time.process_time()
    found(attack)
    assert time.process_time() - began < 0.5


def test_nearly_all_evil_patterns_are_supported() -> None:
    """Refusing everything would pass the test above: at most two of them are refused."""
    assert len(EVIL) >= 30
    refused = 0
    for pattern, _ in EVIL:
        try:
            linear(pattern)
        except NotLinear:
            refused += 1
    assert refused <= 2


def test_the_attack_is_one_on_python_itself() -> None:
    """Python's own engine does not end on the first of them: the tests above can fail."""
    code = f"import re; re.search({EVIL[0][0]!r}, 'a' * 60 + '!')"
    with pytest.raises(subprocess.TimeoutExpired):
        subprocess.run([sys.executable, "-c", code], timeout=1.5, check=False)


@pytest.mark.parametrize("pattern", REFUSED, ids=range(len(REFUSED)))
def test_what_no_linear_engine_can_search_is_refused_with_the_reason(pattern: str) -> None:
    """The expectation of a contract names the pattern's fault; `lint` and `apply` both parse expectations."""
    with pytest.raises(ContractError, match=r"linear-time|regular expression|characters"):
        parse_expectation("expect_column_values_to_match_regex", {"column": "s", "regex": pattern}, {"s": "string"})


@pytest.mark.parametrize("pattern", AGREEING)
def test_a_supported_pattern_finds_what_python_finds(pattern: str) -> None:
    """The same answer as `re.search` on texts around newlines, cases, digits and spaces of all scripts."""
    expected, found = re.compile(pattern), searcher(pattern)
    rng = random.Random(pattern)
    drawn = ["".join(rng.choice("aAbBkK1٣ _-.@\nſséßΣ\u212a") for _ in range(rng.randrange(8))) for _ in range(300)]
    for text in [*TEXTS, *drawn]:
        assert found(text) == (expected.search(text) is not None), (pattern, text)


@pytest.mark.parametrize("pattern", [r"\d", r"\w", r"\s", r"(?i)[k-s]", r"(?i)[İiı]", r"(?i)[^µ]"])
def test_every_character_is_in_the_classes_that_python_has_it_in(pattern: str) -> None:
    """Each of 20,000 code points, those with cases among them, is matched as Python matches it."""
    expected, found = re.compile(pattern), searcher(pattern)
    points = [*range(0x3000), *random.Random(1).sample(range(0x3000, 0xD800), 4000), *range(0xE000, 0x11000)]
    points += random.Random(2).sample(range(0x11000, 0x110000), 1000)
    assert len(points) > 20_000
    assert [p for p in points if found(chr(p)) != (expected.search(chr(p)) is not None)] == []


def test_an_event_with_an_evil_text_stops_no_worker() -> None:
    """The compiled rules of a contract answer for a text of 200,000 characters at once."""
    contract = Contract(
        name="c", version="1", source="s", columns=(Column(name="s", logical_type="string"),),
        rules=(Rule(id="r", expectation="expect_column_values_to_match_regex",
                    arguments={"column": "s", "regex": r"^(\w+\s?)*$"}, mode="quarantine"),),
    )  # fmt: skip
    check = compile_rows(contract)
    began = time.process_time()
    assert check.check([{"s": "word " * 40_000 + "!"}, {"s": "fine"}]) == [1, 0]
    assert time.process_time() - began < 2


def test_lint_refuses_a_pattern_that_cannot_be_searched_in_linear_time(tmp_path: Path) -> None:
    """`contract lint` fails on the file and names the pattern."""
    path = tmp_path / "s.odcs.yaml"
    path.write_text(
        """
apiVersion: v3.1.0
kind: DataContract
id: s
name: s
version: 1.0.0
status: active
schema:
  - name: s
    properties:
      - name: code
        logicalType: string
        logicalTypeOptions:
          pattern: "(?=a)b"
"""
    )
    told = CliRunner().invoke(build_app(), ["contract", "lint", str(path)])
    text = told.output + str(told.exception or "")
    assert told.exit_code != 0
    assert "look-around" in text
    assert "(?=a)b" in text
