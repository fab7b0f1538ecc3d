"""The model's own chat template, applied in one place: both stages, the evaluation and the demo see the same tokens."""

from typing import Any

from dcr_lite.errors import UserError

Tokenizer = Any  # a transformers tokenizer


def _render(tokenizer: Tokenizer, messages: list[dict[str, str]], answer_next: bool) -> str:
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=answer_next))


def prompt_text(tokenizer: Tokenizer, prompt: str) -> str:
    """One user turn up to where the model answers, as the chat template writes it."""
    if not getattr(tokenizer, "chat_template", None):
        raise UserError(
            f"{tokenizer.name_or_path} has no chat template, so it cannot be spoken to as a chat model. "
            "Use its instruct or chat version, or set tokenizer.chat_template and save the tokenizer."
        )
    return _render(tokenizer, [{"role": "user", "content": prompt}], answer_next=True)


def _encode(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    # The template writes its own special tokens; adding them again would double the first one.
    return [list(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]


def encode_prompts(tokenizer: Tokenizer, prompts: list[str], window: int) -> list[list[int]]:
    """Token ids of each prompt in the chat template. ``window``: the longest row allowed, in tokens.

    Raises UserError for a longer prompt: cutting its end would lose the very token whose state is read.
    """
    rows = _encode(tokenizer, [prompt_text(tokenizer, p) for p in prompts])
    for prompt, row in zip(prompts, rows, strict=True):
        if len(row) > window:
            raise UserError(
                f"the prompt {prompt[:60]!r}... has {len(row):,} tokens in the chat template and the limit is "
                f"{window:,}. Shorten it, or leave that row out."
            )
    return rows


def encode_conversations(
    tokenizer: Tokenizer, prompts: list[str], responses: list[str], window: int
) -> list[tuple[list[int], list[int]]]:
    """(prompt ids, answer ids) of each row; the answer ends with the token that ends the model's turn.

    Prompt ids are exactly those of ``encode_prompts``, so training and evaluation split the text at the same place.
    """
    starts = encode_prompts(tokenizer, prompts, window)
    answers = []
    for prompt, response in zip(prompts, responses, strict=True):
        start = prompt_text(tokenizer, prompt)
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
        whole = _render(tokenizer, turns, answer_next=False)
        # Some templates rewrite a finished turn (empty thinking blocks): then the plain answer and the end token.
        answer = whole[len(start) :].rstrip() if whole.startswith(start) else response + tokenizer.eos_token
        answers.append(answer)
    ends = _encode(tokenizer, answers)
    for prompt, start_ids, end_ids in zip(prompts, starts, ends, strict=True):
        if len(start_ids) + len(end_ids) > window:
            raise UserError(
                f"the row {prompt[:60]!r}... has {len(start_ids) + len(end_ids):,} tokens with its answer and the "
                f"limit is {window:,}. Shorten it, or leave that row out."
            )
    return list(zip(starts, ends, strict=True))
