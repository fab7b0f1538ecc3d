"""How a base model is spoken to: the public chat formats of the families, for tokenizers that bring none.

A base model has read no conversations, so its format can be chosen. Its family's own is taken, with one change: an
answer ends with the token that the model ends *texts* with. A base model's end-of-turn token is often untrained (Llama
3 ships zeros for it), and since no recipe trains the output matrix, it could never be learnt as an answer's end.
"""

from typing import Any

from dcr_lite.errors import UserError

OWN = "own"  # leave the tokenizer as it is: a chat model knows its format

CHATML = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] | trim }}
    {{- eos_token if message['role'] == 'assistant' else '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

LLAMA3 = """\
{{- bos_token }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim }}
    {{- eos_token if message['role'] == 'assistant' else '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

# Mistral and Gemma know no system prompt: whoever gives one is told so by jinja's own error.
MISTRAL = """\
{{- bos_token }}
{%- for message in messages %}
    {%- if message['role'] == 'user' %}
        {{- '[INST] ' + message['content'] | trim + '[/INST]' }}
    {%- elif message['role'] == 'assistant' %}
        {{- ' ' + message['content'] | trim + eos_token }}
    {%- else %}
        {{- raise_exception('this format knows user and assistant only') }}
    {%- endif %}
{%- endfor %}
"""

GEMMA = """\
{{- bos_token }}
{%- for message in messages %}
    {%- if message['role'] == 'user' %}
        {{- '<start_of_turn>user\\n' + message['content'] | trim + '<end_of_turn>\\n' }}
    {%- elif message['role'] == 'assistant' %}
        {{- '<start_of_turn>model\\n' + message['content'] | trim + eos_token }}
    {%- else %}
        {{- raise_exception('this format knows user and assistant only') }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<start_of_turn>model\\n' }}
{%- endif %}
"""

# The format's template, and the special tokens that a tokenizer of the family has as one token each.
FORMATS: dict[str, tuple[str, tuple[str, ...]]] = {
    "chatml": (CHATML, ("<|im_start|>", "<|im_end|>")),
    "llama3": (LLAMA3, ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")),
    "mistral": (MISTRAL, ("[INST]", "[/INST]")),
    "gemma": (GEMMA, ("<start_of_turn>", "<end_of_turn>")),
}


def set_format(tokenizer: Any, name: str) -> None:
    """Give the tokenizer the chat format ``name``, a key of FORMATS; OWN leaves it as it is.

    Raises UserError where the tokenizer lacks the format's special tokens: it is of another family.
    """
    if name == OWN:
        return
    template, needed = FORMATS[name]
    known = tokenizer.get_vocab()
    if missing := [token for token in needed if token not in known]:
        raise UserError(
            f"{tokenizer.name_or_path} does not know {', '.join(missing)} of the chat format {name!r}. Take the recipe "
            f"of its family, or --chat-format {OWN} for a model that brings its own format."
        )
    if tokenizer.eos_token is None:
        raise UserError(f"{tokenizer.name_or_path} has no end-of-text token, so answers would never end")
    tokenizer.chat_template = template
