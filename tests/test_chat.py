"""Claims about the chat template: training and evaluation see the same tokens, split at the same place."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import CHAT_TEMPLATE, PROMPTS, SYSTEM, build_tokenizer
from tokenizers.processors import TemplateProcessing

from dcr_lite.errors import UserError
from dcr_lite.model.chat import encode_conversations, encode_prompts, prompt_text

TOKENIZER = build_tokenizer()
WINDOW = 512
MISTRAL = (
    "{{ '<|endoftext|>' }}{% for m in messages %}"
    "{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + '<|im_end|>' }}{% endif %}"
    "{% endfor %}"
)
# A template that opens a thinking block for the answer to come, and leaves it out of finished turns.
THINKING = CHAT_TEMPLATE.replace("<|im_start|>assistant\n' }}", "<|im_start|>assistant\n<think>\n' }}")
TEMPLATES = {"ChatML": CHAT_TEMPLATE, "Mistral's": MISTRAL, "with a thinking block": THINKING}
words = st.text(st.characters(codec="utf-8", exclude_characters="<|>"), min_size=1, max_size=40)


def with_template(name: str) -> Any:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = TEMPLATES[name]
    if name == "Mistral's":  # its tokenizer puts a first token before every text, as its template does
        first = "<|endoftext|>"
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=f"{first} $A", special_tokens=[(first, tokenizer.convert_tokens_to_ids(first))]
        )
        assert tokenizer("Hi")["input_ids"][0] == tokenizer.convert_tokens_to_ids(first)
    return tokenizer


@pytest.mark.parametrize("template", TEMPLATES)
def test_prompt_ids_begin_the_conversation(template: str) -> None:
    """Prompt ids of a conversation are exactly those that evaluation feeds, and the answer's follow them."""
    tokenizer = with_template(template)
    answers = [f"Answer {i} is here." for i in range(len(PROMPTS))]
    prompts = encode_prompts(tokenizer, PROMPTS, WINDOW)
    conversations = encode_conversations(tokenizer, PROMPTS, answers, WINDOW)
    for text, response, prompt, (start, end) in zip(PROMPTS, answers, prompts, conversations, strict=True):
        assert start == prompt
        assert tokenizer.decode(start) == prompt_text(tokenizer, text)
        assert response in tokenizer.decode(end)
        assert text not in tokenizer.decode(end)


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("response", ["Sure.", "Sure. ", "Sure.\n\n", "1. Mix\n2. Bake", "é – ✓"])
def test_the_answer_ends_with_the_end_of_the_turn(template: str, response: str) -> None:
    """The last answer token is the one that ends the turn, it comes once, and nothing follows."""
    tokenizer = with_template(template)
    [(_, answer)] = encode_conversations(tokenizer, ["How do I kill a process?"], [response], WINDOW)
    assert answer[-1] == tokenizer.eos_token_id
    assert answer.count(tokenizer.eos_token_id) == 1
    assert tokenizer.decode(answer[:-1]).strip() == response.strip()


def test_a_finished_turn_is_what_the_template_writes() -> None:
    """With ChatML, prompt and answer together are the template's own text up to the last newline."""
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello there."}]
    whole = TOKENIZER.apply_chat_template(turns, tokenize=False)
    [(start, answer)] = encode_conversations(TOKENIZER, ["Hi"], ["Hello there."], WINDOW)
    assert TOKENIZER.decode(start + answer) == whole.rstrip()
    assert TOKENIZER(whole.rstrip(), add_special_tokens=False)["input_ids"] == start + answer


@settings(max_examples=50)
@given(prompt=words, response=words)
def test_any_text_comes_through_the_template(prompt: str, response: str) -> None:
    """Whatever the texts are, prompt ids spell the template with the prompt in it and the answer ends its turn."""
    [(start, answer)] = encode_conversations(TOKENIZER, [prompt], [response], WINDOW)
    assert TOKENIZER.decode(start) == prompt_text(TOKENIZER, prompt)
    assert start == encode_prompts(TOKENIZER, [prompt], WINDOW)[0]
    assert TOKENIZER.decode(answer) == response + TOKENIZER.eos_token


def test_the_prompt_keeps_the_default_system_prompt_and_asks_for_the_answer() -> None:
    """The template's own system prompt comes first, the header of the answer last."""
    text = prompt_text(TOKENIZER, "Hi")
    assert SYSTEM in text
    assert text.endswith("<|im_start|>assistant\n")


def test_special_tokens_are_not_added_twice() -> None:
    """A template that writes its own first token keeps it single."""
    tokenizer = with_template("Mistral's")
    [row] = encode_prompts(tokenizer, ["Hi"], WINDOW)
    assert row.count(tokenizer.convert_tokens_to_ids("<|endoftext|>")) == 1


def test_a_tokenizer_without_a_template_is_a_user_error() -> None:
    """A base model's tokenizer raises UserError that says what to use instead."""
    tokenizer = build_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(UserError, match=r"no chat template.*instruct"):
        prompt_text(tokenizer, "Hi")
    with pytest.raises(UserError, match="no chat template"):
        encode_conversations(tokenizer, ["Hi"], ["Hello"], WINDOW)


def test_a_prompt_that_is_too_long_is_named() -> None:
    """A prompt over the limit raises UserError with its beginning and both lengths; one at the limit passes."""
    long = "Tell me about rain. " * 10
    n = len(encode_prompts(TOKENIZER, [long], WINDOW)[0])
    assert len(encode_prompts(TOKENIZER, ["Hi", long], n)[1]) == n
    with pytest.raises(UserError, match=f"Tell me about rain.*{n} tokens.*limit is {n - 1}"):
        encode_prompts(TOKENIZER, ["Hi", long], n - 1)


def test_an_answer_that_is_too_long_names_its_prompt() -> None:
    """A row over the limit only with its answer raises UserError naming the prompt."""
    response = "Rain falls. " * 10
    [(start, answer)] = encode_conversations(TOKENIZER, ["Tell me about rain."], [response], WINDOW)
    n = len(start) + len(answer)
    assert encode_conversations(TOKENIZER, ["Tell me about rain."], [response], n)
    with pytest.raises(UserError, match=f"Tell me about rain.*{n} tokens with its answer.*{n - 1}"):
        encode_conversations(TOKENIZER, ["Tell me about rain."], [response], n - 1)
