"""Ollama's side of a Modelfile: its parser, and a small renderer of the part of Go's text/template that Modelfiles use.

The parser follows parser/parser.go of Ollama, the data of a template template/template.go. The renderer knows actions
without trim markers: if, else if, else, end, range over a list, variables, and, eq, gt, le, len, slice, strings.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ACTION = re.compile(r'\{\{(?P<inside>(?:[^"{}]|"(?:\\.|[^"\\])*")*)\}\}')
WORD = re.compile(r'"(?:\\.|[^"\\])*"|[()]|[^\s()",]+|,')
WORDS: dict[str, Any] = {
    "true": True,
    "false": False,
    "and": lambda *values: next((v for v in values if not v), values[-1]),
    "eq": lambda a, b: a == b,
    "gt": lambda a, b: a > b,
    "le": lambda a, b: a <= b,
    "len": len,
    "slice": lambda items, start: items[start:],
}


@dataclass(frozen=True)
class Modelfile:
    """source: after FROM. template: after TEMPLATE. parameters: of every PARAMETER, in order."""

    source: str
    template: str
    parameters: list[tuple[str, str]]

    @property
    def stops(self) -> list[str]:
        return [value for name, value in self.parameters if name == "stop"]


def read_modelfile(path: Path) -> Modelfile:
    """A Modelfile as Ollama parses it: a value in three quotation marks ends at the next three; characters that cannot
    be printed are lost."""
    text = path.read_text(encoding="utf-8")
    text = "".join(c for c in text if c.isprintable() or c in "\n\t\r")
    found: dict[str, list[str]] = {}
    pattern = re.compile(r'^(?:#[^\n]*|(?P<name>[A-Z]+) (?P<value>"""(?s:.*?)"""|"[^"]*"|[^\n]*))$', re.MULTILINE)
    rest = pattern.sub(lambda m: found.setdefault(m["name"] or "#", []).append(m["value"]) or "", text)
    assert not rest.strip(), f"not understood: {rest!r}"
    (source,), (template,) = found["FROM"], found["TEMPLATE"]
    parameters = [tuple(value.split(" ", 1)) for value in found["PARAMETER"]]
    return Modelfile(source, _unquoted(template), [(name, _unquoted(value)) for name, value in parameters])


def _unquoted(value: str) -> str:
    for mark in ('"""', '"'):
        if value.startswith(mark):
            return value.removeprefix(mark).removesuffix(mark)
    return value


def render_messages(template: str, messages: list[dict[str, str]]) -> str:
    """What Ollama makes of a conversation: neighbours of one role joined, all system messages in .System too."""
    joined: list[dict[str, str]] = []
    for message in messages:
        if joined and joined[-1]["Role"] == message["role"]:
            joined[-1]["Content"] += "\n\n" + message["content"]
        else:
            joined.append({"Role": message["role"], "Content": message["content"]})
    system = "\n\n".join(m["content"] for m in messages if m["role"] == "system")
    return render(template, {"System": system, "Messages": joined})


def render(template: str, data: dict[str, Any]) -> str:
    """A Go template with its data, a dictionary."""
    tokens: list[tuple[str, str]] = []
    place = 0
    for action in ACTION.finditer(template):
        tokens += [("text", template[place : action.start()]), ("action", action["inside"].strip())]
        place = action.end()
    tokens.append(("text", template[place:]))
    assert "{{" not in "".join(text for kind, text in tokens if kind == "text")
    out: list[str] = []
    end = _run(tokens, 0, data, {"$": data}, out)
    assert end == len(tokens), "an {{ end }} too many"
    return "".join(out)


def _run(tokens: list[tuple[str, str]], at: int, dot: Any, names: dict[str, Any], out: list[str] | None) -> int:
    """Write from ``at`` on to the next end or else of this level, whose place is returned; out: None skips it."""
    while at < len(tokens):
        kind, inside = tokens[at]
        word = inside.split(" ", 1)[0]
        if kind == "text":
            if out is not None:
                out.append(inside)
        elif word in ("end", "else"):
            return at
        elif word == "if":
            at = _run_if(tokens, at, dot, names, out)
        elif word == "range":
            at = _run_range(tokens, at, dot, names, out)
        elif assigned := re.fullmatch(r"(\$\w+) :?= (.+)", inside):
            if out is not None:
                names[assigned[1]] = _value(assigned[2], dot, names)
        elif out is not None:
            out.append(str(_value(inside, dot, names)))
        at += 1
    return at


def _run_if(tokens: list[tuple[str, str]], at: int, dot: Any, names: dict[str, Any], out: list[str] | None) -> int:
    done = out is None
    while True:
        condition = tokens[at][1].removeprefix("else").strip().removeprefix("if").strip()
        holds = not done and (not condition or bool(_value(condition, dot, names)))
        at = _run(tokens, at + 1, dot, names, out if holds else None)
        done = done or holds
        if tokens[at][1] == "end":
            return at


def _run_range(tokens: list[tuple[str, str]], at: int, dot: Any, names: dict[str, Any], out: list[str] | None) -> int:
    found = re.fullmatch(r"range (\$\w+), (\$\w+) := (.+)", tokens[at][1])
    assert found, tokens[at]
    items = list(enumerate(_value(found[3], dot, names))) if out is not None else []
    for number, item in items:
        names[found[1]], names[found[2]] = number, item
        end = _run(tokens, at + 1, item, names, out)
    return end if items else _run(tokens, at + 1, dot, names, None)


def _value(expression: str, dot: Any, names: dict[str, Any]) -> Any:
    words = WORD.findall(expression)
    value, rest = _call(words, dot, names)
    assert not rest, f"not understood: {expression}"
    return value


def _call(words: list[str], dot: Any, names: dict[str, Any]) -> tuple[Any, list[str]]:
    values = []
    while words and words[0] != ")":
        word, *words = words
        if word == "(":
            value, words = _call(words, dot, names)
            assert words.pop(0) == ")"
        else:
            value = _atom(word, dot, names)
        values.append(value)
    return (values[0](*values[1:]) if callable(values[0]) else values[0]), words


def _atom(word: str, dot: Any, names: dict[str, Any]) -> Any:
    if word[0] == '"':
        wide = re.sub(r"\\U([0-9a-f]{8})", lambda m: json.dumps(chr(int(m[1], 16)))[1:-1], word)
        return json.loads(wide)
    if word.isdigit():
        return int(word)
    if word in WORDS:
        return WORDS[word]
    start, *fields = word.split(".")
    value = names[start] if start else dot
    for field in fields:
        value = value.get(field, "")  # missingkey=zero
    return value
