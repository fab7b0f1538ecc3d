"""Claims about dates in chat templates: the day that a template writes is always the same."""

from datetime import datetime
from pathlib import Path

import pytest
from tiny_models import CHAT_TEMPLATE, build_tokenizer

from dcr_lite.model.chat import prompt_text
from dcr_lite.model.dates import DAY, fix_day
from dcr_lite.model.loading import load_tokenizer

# How the families' own templates ask for the day, and what they are to be told.
ASKED = {
    "Llama 3.2": ("{% if strftime_now is defined %}{% set day = strftime_now('%d %b %Y') %}{% endif %}", "01 Jan 2026"),
    "SmolLM3": ('{%- set day = strftime_now("%d %B %Y") -%}', "01 January 2026"),
    "Mistral Small": ('{%- set day = strftime_now("%Y-%m-%d") %}', "2026-01-01"),
}
TURNS = (
    "\nToday: {{ day }}\n{% for m in messages %}{{ m.role }}: {{ m.content }} ({{ strftime_now('%Y') }})\n{% endfor %}"
)


@pytest.mark.parametrize("family", ASKED)
def test_the_day_is_the_same_always(family: str, tmp_path: Path) -> None:
    """Whatever day it is, a prompt has the one date, in the family's own form, in loops too; the rest of the template
    is as it was, and so is what is saved and loaded again."""
    asks, told = ASKED[family]
    own, fixed = build_tokenizer(), build_tokenizer()
    own.chat_template = fixed.chat_template = asks + TURNS
    fix_day(fixed)
    now = prompt_text(own, "Hi").partition("Today: ")[2].split("\n")[0]
    this_year = datetime.now().strftime("%Y")
    assert this_year in now  # so this is what would change
    expected = prompt_text(own, "Hi").replace(now, told).replace(f"({this_year})", "(2026)")
    assert prompt_text(fixed, "Hi") == expected
    fixed.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.chat_template == fixed.chat_template
    assert prompt_text(loaded, "Hi") == expected


def test_the_parts_of_the_day_are_of_one_day() -> None:
    """Each directive has what Python's strftime gives for the first of January 2026."""
    assert {directive: datetime(2026, 1, 1).strftime(directive) for directive in DAY} == DAY


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, None])
def test_a_template_without_a_date_stays_as_it_is(template: str | None) -> None:
    """As does none at all."""
    tokenizer = build_tokenizer()
    tokenizer.chat_template = template
    fix_day(tokenizer)
    assert tokenizer.chat_template == template
