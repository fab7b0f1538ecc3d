"""Whether a JSON value has the shape of a type: TypedDicts, lists, dictionaries by names, numbers, texts, None.

submission.json comes from strangers. jsonschema would bring four packages, one of them compiled, and a second
description of the file beside the types that the code is checked with; and it could not say what matters more, that
numbers follow from each other (verification.py).
"""

import math
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints, is_typeddict

LONGEST = 1_000  # characters of a text
LARGEST = 2**53  # of a whole number: up to here a float holds it exactly


def misfits(value: Any, hint: Any, place: str = "") -> list[str]:
    """What keeps ``value`` from being a ``hint``, a sentence for each place; empty where nothing does. Numbers have to
    be finite, texts printable."""
    if is_typeddict(hint):
        return _misfits_of_fields(value, get_type_hints(hint), place)
    kinds = get_args(hint)
    if get_origin(hint) is UnionType:
        found = [misfits(value, kind, place) for kind in kinds]
        return [] if [] in found else found[0]
    if get_origin(hint) is list and isinstance(value, list):
        return [said for i, one in enumerate(value) for said in misfits(one, kinds[0], f"{place}[{i}]")]
    if get_origin(hint) is dict and isinstance(value, dict):
        return [
            said
            for name, one in value.items()
            for said in misfits(name, str, f"a name in {place}") + misfits(one, kinds[1], _below(place, name))
        ]
    return [] if _is(value, hint) else [f"{place or 'the file'} is no {_words(hint)}"]


def _misfits_of_fields(value: Any, hints: dict[str, Any], place: str) -> list[str]:
    if not isinstance(value, dict):
        return [f"{place or 'the file'} is no object"]
    found = [f"{_below(place, name)} is missing" for name in hints if name not in value]
    found += [f"{_below(place, name)} is unknown" for name in value if name not in hints]
    return found + [
        said for name, one in value.items() if name in hints for said in misfits(one, hints[name], _below(place, name))
    ]


def _below(place: str, name: str) -> str:
    return f"{place}.{name}" if place else name


def _is(value: Any, hint: Any) -> bool:
    if hint is str:
        return isinstance(value, str) and value.isprintable() and len(value) <= LONGEST
    if hint is int:
        return type(value) is int and abs(value) <= LARGEST
    if hint is float:
        return _is(value, int) or (isinstance(value, float) and math.isfinite(value))
    if hint is bool:
        return isinstance(value, bool)
    return value is None and hint in (None, type(None))


def _words(hint: Any) -> str:
    names = {str: "printable text", int: "whole number", float: "finite number", bool: "true or false"}
    return names.get(hint, {list: "list", dict: "object"}.get(get_origin(hint), "null"))
