"""Pieces of HTML that several sections share. Everything that goes in as text comes out escaped."""

from __future__ import annotations

from .words import NOT_MEASURED, esc

__all__ = ["table", "facts", "figure", "unit_name", "code", "whole"]


def table(heads, rows, caption, kind="", numeric=(), raw=False):
    """A table with its caption, free to scroll sideways on a narrow screen. raw: rows come with their own tbody."""
    numeric = set(range(1, len(heads))) if raw else numeric
    top = "".join(
        f'<th scope="col"{" class=n" if i in numeric else ""}>{esc(head)}</th>' for i, head in enumerate(heads)
    )
    body = "".join(rows) if raw else f"<tbody>{''.join(rows)}</tbody>"
    named = f' class="{kind}"' if kind else ""
    caption = f"<caption><span>{esc(caption.strip())}</span></caption>"
    return f'<div class="scroll"><table{named}>{caption}<thead><tr>{top}</tr></thead>{body}</table></div>'


def facts(pairs):
    """Names with what is known of them; pairs of a name and HTML, left out where that is empty."""
    return '<dl class="facts">' + "".join(f"<dt>{esc(n)}</dt><dd>{text}</dd>" for n, text in pairs if text) + "</dl>"


def figure(panel, note=""):
    """A svg.Figure under its title."""
    caption = f"<h4>{esc(panel.title)}</h4>"
    return f"<figure>{caption}{panel.svg}{f'<figcaption>{esc(note)}</figcaption>' if note else ''}</figure>"


def unit_name(name):
    """A name that may break after its dots."""
    return f"<code>{esc(name).replace('.', '.<wbr>')}</code>"


def code(text):
    return f"<code>{esc(text)}</code>" if text else ""


def whole(number):
    return NOT_MEASURED if number is None else f"{number:,}"
