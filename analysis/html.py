"""How is a page written? Small pieces of HTML from plain values, escaped, with the style sheet
inside."""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from analysis.style import CSS


@dataclass(frozen=True)
class Markup:
    """Text that is HTML already; everything else is escaped."""

    text: str


def cell(value: Any) -> str:
    if isinstance(value, Markup):
        return value.text
    return html.escape(number(value))


def number(value: Any) -> str:
    """A value for people: an absent one is a dash, never a zero."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) < 1e7 else f"{value:.4g}"
    if isinstance(value, float):
        if value == 0:
            return "0"
        return (
            f"{value:,.4f}".rstrip("0").rstrip(".") if 1e-3 <= abs(value) < 1e5 else f"{value:.4g}"
        )
    return str(value)


def times(value: float | None) -> str | None:
    """How many times over, or None."""
    return None if value is None else f"{value:.3g} x"


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[Any]],
    *,
    numbers: Sequence[int] = (),
    faint: Sequence[int] = (),
) -> str:
    """`numbers`: columns set to the right; `faint`: rows that took no part."""

    def line(tag: str, values: Sequence[Any]) -> str:
        return "".join(
            f"<{tag}{' class=n' if k in numbers else ''}>{cell(v)}</{tag}>"
            for k, v in enumerate(values)
        )

    body = "\n".join(
        f"<tr{' class=out' if k in faint else ''}>{line('td', row)}</tr>"
        for k, row in enumerate(rows)
    )
    top = f"<thead><tr>{line('th', head)}</tr></thead>" if any(head) else ""
    return f'<div class="scroll"><table>{top}\n<tbody>{body}</tbody></table></div>'


def pairs(values: Mapping[str, Any]) -> str:
    """A two-column table of names and values; absent ones are left out."""
    rows = [(name, value) for name, value in values.items() if value is not None]
    return table(("", ""), rows).replace("<table>", '<table class="pairs">') if rows else ""


def paragraph(text: str, *, kind: str = "") -> str:
    return f"<p{f' class={kind}' if kind else ''}>{html.escape(text)}</p>"


def picture(svg: str, caption: str) -> str:
    return f"<figure>{svg}<figcaption>{html.escape(caption)}</figcaption></figure>"


def cards(values: Sequence[tuple[str, str]]) -> str:
    inner = "".join(
        f'<div class="card"><b>{html.escape(v)}</b><span>{html.escape(k)}</span></div>'
        for k, v in values
    )
    return f'<div class="cards">{inner}</div>'


def warnings(lines: Sequence[str]) -> str:
    if not lines:
        return ""
    return '<ul class="warn">' + "".join(f"<li>{html.escape(w)}</li>" for w in lines) + "</ul>"


def verdict(inside: bool | None) -> Markup:
    if inside is None:
        return Markup("not measured yet")
    return Markup(
        '<span class="good">inside</span>' if inside else '<span class="bad">outside</span>'
    )


def page(title: str, lead: str, sections: Sequence[tuple[str, str, str]], *, top: str = "") -> str:
    """Sections are (id, heading, HTML); empty ones are left out, of the contents too."""
    kept = [s for s in sections if s[2]]
    contents = "".join(f'<a href="#{i}">{html.escape(h)}</a>' for i, h, _ in kept)
    body = "\n".join(
        f'<section id="{i}"><h2>{html.escape(h)}</h2>\n{inner}</section>' for i, h, inner in kept
    )
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title>\n<style>\n{CSS}</style></head>\n"
        f'<body><h1>{html.escape(title)}</h1>\n<p class="lead">{html.escape(lead)}</p>\n'
        f"{top}<nav>{contents}</nav>\n{body}\n</body></html>\n"
    )
