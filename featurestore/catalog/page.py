"""How does a person leaf through the catalog? One HTML page that needs no other file, no script and no address."""

from collections.abc import Sequence
from html import escape
from typing import Final

from featurestore.catalog.entries import Entry

_STYLE: Final = """
:root{color-scheme:light dark;--line:#8885;--soft:#8882}
body{font:15px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin:0}nav{columns:16rem;margin:1rem 0}nav a{display:block}
section{border:1px solid var(--line);padding:.8rem 1rem;margin:1rem 0}
table{border-collapse:collapse;width:100%;font-size:.9rem;margin:.6rem 0}
th,td{text-align:left;padding:.25rem .6rem;border-bottom:1px solid var(--line);vertical-align:top}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.1rem 1rem}dt{font-weight:600}dd{margin:0}
.bad{color:#c62828;font-weight:600}.warn{color:#b26a00;font-weight:600}.ok{color:#2e7d32}.unknown{opacity:.6}
"""


def page(project: str, entries: Sequence[Entry]) -> str:
    """The catalog of a project as HTML.

    >>> "<h1>Features of p</h1>" in page("p", [])
    True
    """
    links = "".join(f'<a href="#{escape(each.view)}">{escape(each.view)}</a>' for each in entries)
    body = "".join(_section(each) for each in entries)
    title = f"Features of {escape(project)}"
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head>'
        f"<body><h1>{title}</h1><nav>{links}</nav>{body}</body></html>"
    )


def _section(entry: Entry) -> str:
    facts = {
        "Kind": f"{entry.kind}, version {entry.version}" if entry.version else entry.kind,
        "Owner": entry.owner,
        "Keys": ", ".join(f"{name} ({dtype})" for name, dtype in entry.keys.items()),
        "Source": entry.source + (f", topic {entry.topic}" if entry.topic else ""),
        "Contract": entry.contract or ("none" if entry.source else ""),
        "Personal data": "yes: reading it needs a grant" if entry.personal else "",
        "Services": ", ".join(entry.services) or "none",
    }
    told = "".join(f"<dt>{name}</dt><dd>{escape(value)}</dd>" for name, value in facts.items() if value)
    features = "".join(
        f"<tr><td>{escape(each.name)}</td><td>{escape(each.dtype)}</td><td>{escape(each.made)}</td>"
        f'<td class="{escape(each.health)}">{escape(each.health)}</td><td>{escape("; ".join(each.reasons))}</td></tr>'
        for each in entry.features
    )
    kept = "".join(
        f"<tr><td>{escape(each.boundary)}</td><td>{escape(_modes(each.modes))}</td></tr>" for each in entry.kept
    )
    boundaries = f"<table><tr><th>kept at</th><th>rules</th></tr>{kept}</table>" if kept else ""
    return (
        f'<section id="{escape(entry.view)}"><h2>{escape(entry.view)}</h2><p>{escape(entry.description)}</p>'
        f"<dl>{told}</dl><table><tr><th>feature</th><th>type</th><th>made of</th><th>health</th><th>why</th></tr>"
        f"{features}</table>{boundaries}</section>"
    )


def _modes(modes: dict[str, int]) -> str:
    return ", ".join(f"{count} {mode}" for mode, count in modes.items()) or "none"
