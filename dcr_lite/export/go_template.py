"""The texts of a chat template (``chat_turns``) as a template of Ollama, which is one of Go's text/template.

Ollama gives it .Messages, the conversation, whose neighbours of one role are joined, and .System, all system messages.
"""

import json

from dcr_lite.export.chat_turns import ChatTurns

# $left counts the messages from the present one on. An answer that the conversation ends with is to be continued. An
# answer whose prompt Ollama has cut off, for want of room, goes with it.
CONVERSATION = (
    "{{ range $i, $_ := .Messages }}{{ $left := len (slice $.Messages $i) }}"
    '{{ if eq .Role "user" }}{{ $asked = true }}%(system)s{{ .Content }}'
    "{{ if gt $left 2 }}%(answer)s{{ else }}%(ask)s{{ end }}"
    '{{ else if and $asked (eq .Role "assistant") }}{{ .Content }}'
    "{{ if gt $left 1 }}%(next)s{{ end }}{{ end }}{{ end }}"
)


def go_template(turns: ChatTurns, first_token: str = "") -> str:
    """``turns`` as Ollama's template. first_token: what llama.cpp puts before every prompt, which must not be written
    twice."""
    start = literal(turns.start.removeprefix(first_token))
    texts = {name: literal(getattr(turns, name)) for name in ("answer", "next", "ask")}
    if turns.start_with_system:
        before, behind = turns.start_with_system
        before = literal(before.removeprefix(first_token))
        start = f"{{{{ if .System }}}}{before}{{{{ .System }}}}{literal(behind)}{{{{ else }}}}{start}{{{{ end }}}}"
        texts["system"] = ""
    else:
        inside = f"{{{{ $.System }}}}{literal(turns.system_in_last)}"
        texts["system"] = f"{{{{ if and $.System (le $left 2) }}}}{inside}{{{{ end }}}}"
    return "{{ $asked := false }}" + start + CONVERSATION % texts


def literal(text: str) -> str:
    """A text as it stands in a template of a Modelfile; as an expression of Go where it holds a brace, quotation marks
    or what a Modelfile loses (characters that cannot be seen)."""
    plain = all(c.isprintable() or c in "\n\t" for c in text)
    if plain and "{" not in text and "}" not in text and '"' not in text:
        return text
    escaped = "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in json.dumps(text, ensure_ascii=False))
    return f"{{{{ {escaped} }}}}"
