"""llama.cpp itself, where its wheel is installed: what it makes of a GGUF file."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from _llama_cpp import Served, serve
from torch import Tensor


class LlamaCpp(Served):
    """What the tests ask of a served file."""

    def tokens(self, text: str, add_special: bool = False) -> list[int]:
        body = {"content": text, "add_special": add_special, "parse_special": True}
        return [int(token) for token in self.ask("/tokenize", body)["tokens"]]

    def prompt_text(self, prompt: str, **values: Any) -> str:
        """In the file's own chat template, with these values of its variables."""
        body = {"messages": [{"role": "user", "content": prompt}], "chat_template_kwargs": values}
        return str(self.ask("/apply-template", body)["prompt"])

    def prompt_tokens(self, prompt: str) -> int:
        """How many tokens a prompt has in the file's own chat template, as the OpenAI interface counts them."""
        body = {"messages": [{"role": "user", "content": prompt}], "max_tokens": 1}
        return int(self.ask("/v1/chat/completions", body)["usage"]["prompt_tokens"])

    def log_probabilities(self, row: list[int], vocabulary: int) -> Tensor:
        """Of each next token after a row of token ids: (vocabulary,)."""
        # It answers nothing where it takes half a character or the end, so it is made to take a letter; the
        # probabilities that it tells are those before that.
        letter = [[self.tokens("a")[-1], 1000.0]]
        body = {"prompt": row, "n_predict": 1, "n_probs": vocabulary, "logit_bias": letter, "cache_prompt": False}
        seen = torch.full((vocabulary,), float("nan"))
        for token in self.ask("/completion", body)["completion_probabilities"][0]["top_logprobs"]:
            seen[token["id"]] = token["logprob"]
        return seen


@contextmanager
def llama_cpp(file: Path, context: int = 512, key: str = "") -> Iterator[LlamaCpp]:
    """A file served with so many tokens of context, to those alone who know the key where there is one. Skips the test
    where llama.cpp's wheel is not installed."""
    pytest.importorskip("xllamacpp", reason="llama.cpp's wheel (xllamacpp) is not installed here")
    with serve(file, context, 1, key) as address:
        yield LlamaCpp(address)
