"""Dates in chat templates: some families' templates (Llama 3.2, SmolLM3, Mistral Small) tell the model what day it is.

A prompt would so be another one tomorrow: a run that goes on after midnight would compare states of different prompts,
and an adapter would be asked otherwise than it was trained. So the day of a template is fixed, in the template itself,
which goes wherever the model goes. Llama 3.1's template does the same by itself.
"""

from typing import Any

NOTE = "{# dcr-lite: the same day always #}"
# 1 January 2026, later than what any of them has read, by the directives of Python's strftime.
DAY = {"%d": "01", "%m": "01", "%Y": "2026", "%B": "January", "%b": "Jan", "%A": "Thursday", "%a": "Thu"}
_FILTERS = "".join(f" | replace('{directive}', '{value}')" for directive, value in DAY.items())
_MACRO = f"{NOTE}{{% macro strftime_now(format) %}}{{{{ format{_FILTERS} }}}}{{% endmacro %}}\n"


def fix_day(tokenizer: Any) -> None:
    """Let a tokenizer's chat template write the same date always. One that asks for no date stays as it is."""
    template = tokenizer.chat_template
    if isinstance(template, str) and "strftime_now" in template and NOTE not in template:
        tokenizer.chat_template = _MACRO + template  # a macro of the template hides the function that it is given
