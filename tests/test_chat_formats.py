"""Claims about the chat formats that base models are given."""

from typing import Any

import pytest
from tiny_models import BASE_TOKENS, PROMPTS, build_base_tokenizer, build_tokenizer

from dcr_lite.errors import UserError
from dcr_lite.model.chat import FORMATS, OWN, encode_conversations, encode_prompts, set_format

WINDOW = 512
# What each family publishes for one user turn, up to where the model answers.
PUBLISHED = {
    "chatml": "<|im_start|>user\nHi there<|im_end|>\n<|im_start|>assistant\n",
    "llama3": "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi there<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "mistral": "<s>[INST] Hi there[/INST]",
    "gemma": "<bos><start_of_turn>user\nHi there<end_of_turn>\n<start_of_turn>model\n",
}


def formatted(name: str) -> Any:
    tokenizer = build_base_tokenizer(name)
    set_format(tokenizer, name)
    return tokenizer


def test_every_format_is_tested() -> None:
    """Each format of the kit has a tokenizer here and the text that its family publishes."""
    assert FORMATS.keys() == BASE_TOKENS.keys() == PUBLISHED.keys()


@pytest.mark.parametrize("name", FORMATS)
def test_a_prompt_reads_as_the_family_publishes_it(name: str) -> None:
    """One user turn is the published text, its special tokens one id each and the first token there once."""
    tokenizer = formatted(name)
    for prompt in ("Hi there", "  Hi there\n"):
        [row] = encode_prompts(tokenizer, [prompt], WINDOW)
        assert tokenizer.decode(row) == PUBLISHED[name]
    first, _, special = BASE_TOKENS[name]
    ids = [tokenizer.convert_tokens_to_ids(token) for token in special if token in PUBLISHED[name]]
    assert set(ids) <= set(row)
    assert row.count(tokenizer.bos_token_id) == (first is not None)


@pytest.mark.parametrize("name", FORMATS)
def test_an_answer_ends_with_the_token_that_ends_texts(name: str) -> None:
    """A base model knows one end, that of a text: each answer ends with it, once, and the prompt holds none."""
    tokenizer = formatted(name)
    for prompt, (start, answer) in zip(
        PROMPTS, encode_conversations(tokenizer, PROMPTS, ["Sure. Here it is."] * len(PROMPTS), WINDOW), strict=True
    ):
        assert [start] == encode_prompts(tokenizer, [prompt], WINDOW)
        assert tokenizer.decode(answer).strip() == "Sure. Here it is." + BASE_TOKENS[name][1]
        assert answer[-1] == tokenizer.eos_token_id
        assert (start + answer).count(tokenizer.eos_token_id) == 1


@pytest.mark.parametrize("name", FORMATS)
def test_several_turns_follow_each_other(name: str) -> None:
    """A conversation of several turns is its turns in a row, each answer ended, and then the model's turn."""
    tokenizer = formatted(name)
    turns = [("user", "Hi there"), ("assistant", "Hello."), ("user", "Bye now")]
    text = tokenizer.apply_chat_template(
        [{"role": role, "content": content} for role, content in turns], tokenize=False, add_generation_prompt=True
    )
    places = [text.index(content) for _, content in turns]
    assert places == sorted(places)
    assert text.startswith(PUBLISHED[name])
    assert text.count(BASE_TOKENS[name][1]) == 1
    assert text[places[1] :].startswith("Hello." + BASE_TOKENS[name][1])
    opening = PUBLISHED[name][PUBLISHED[name].index("Hi there") + len("Hi there") :]
    assert text.endswith("Bye now" + opening)


@pytest.mark.parametrize("name", FORMATS)
def test_a_model_of_another_family_is_refused(name: str) -> None:
    """A tokenizer without the format's special tokens would cut them into letters: an error that names them."""
    for other in FORMATS.keys() - {name}:
        with pytest.raises(UserError, match=r"does not know .* of the chat format"):
            set_format(build_base_tokenizer(other), name)


def test_a_chat_model_keeps_its_own_format() -> None:
    """OWN changes nothing, whether the tokenizer has a template or not."""
    chat, base = build_tokenizer(), build_base_tokenizer("llama3")
    before = chat.chat_template
    set_format(chat, OWN)
    set_format(base, OWN)
    assert chat.chat_template == before
    assert not base.chat_template


def test_a_tokenizer_without_an_end_is_refused() -> None:
    """Without an end-of-text token no answer would end."""
    tokenizer = build_base_tokenizer("gemma")
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="no end-of-text token"):
        set_format(tokenizer, "gemma")
