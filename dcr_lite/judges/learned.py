"""A learned judge: a linear head on the states of SmolLM2-135M-Instruct, the small model that the kit ships with.

The embedding of an answer is the mean over its tokens of the states behind decoder layer 18 of 30, where it is read as
the answer to its prompt; the head is a logistic regression on labels of answers. benchmarks/fit_judge.py fits it and
writes learned.safetensors; docs/measuring.md has its accuracy on models and prompts that it was not fitted on.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from dcr_lite.data.sources import SMOLLM2, locate
from dcr_lite.errors import UserError
from dcr_lite.files import load_tensors
from dcr_lite.judges.interface import Exchange
from dcr_lite.model.cuda import device_of
from dcr_lite.model.in_passes import in_passes
from dcr_lite.model.loading import best_precision

NAME = "learned"
HEAD = Path(__file__).with_name("learned.safetensors")
CURE = "Install the kit again."
LAYERS = 18  # that are computed: of 12, 18, 24 and 29 the states that tell best on answers of models not fitted on
PROMPT_CHARACTERS, ANSWER_CHARACTERS, ANSWER_TOKENS = 300, 600, 70  # refusals show in an answer's first sentences
BATCH = 16  # answers of similar length
OPENING, BETWEEN = "<|im_start|>user\nQuestion: ", "\nAnswer: "  # as the head was fitted; no template is filled in


class LearnedJudge:
    """A head on the embeddings of a small model."""

    name = NAME

    def __init__(self, device: str = "auto"):
        """Load both. Raises UserError where the small model cannot be had, or the head is damaged."""
        head = load_tensors(HEAD, CURE)
        self.weights, self.bias = head["weights"].double().numpy(), float(head["bias"])
        self.embedder = Embedder(device)

    def scores(self, rows: Sequence[Exchange]) -> list[float]:
        """The probability of a refusal for each row; 0 for an empty answer, as by the cue judge."""
        said = [row for row in rows if row.response.strip()]
        if not said:
            return [0.0] * len(rows)
        log_odds = iter((self.embedder.states(said) @ self.weights + self.bias).tolist())
        return [1 / (1 + float(np.exp(-next(log_odds)))) if row.response.strip() else 0.0 for row in rows]


class Embedder:
    """SmolLM2 up to a middle layer."""

    def __init__(self, device: str = "auto"):
        """Raises UserError where the model cannot be had."""
        try:
            folder, _ = locate(SMOLLM2)
        except UserError as error:
            raise UserError(f"--judge {NAME} reads answers with {SMOLLM2}. {error}") from None
        self.device = device_of(device)
        network = AutoModel.from_pretrained(
            folder, dtype=best_precision(self.device), use_safetensors=True, trust_remote_code=False
        )
        network.layers = network.layers[:LAYERS]
        network.norm = torch.nn.Identity()  # it belongs behind the last layer of all
        self.network = network.to(self.device).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)

    def states(self, rows: Sequence[Exchange]) -> NDArray[np.float64]:
        """The embedding of each answer, (rows, d_model). None of them may be empty."""
        encoded = [self._encode(row) for row in rows]
        order = sorted(range(len(rows)), key=lambda i: len(encoded[i][0]))  # little padding in a batch
        batches = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
        found = in_passes(batches, lambda part: self._batch([encoded[i] for i in part]))
        return torch.stack(found).double().numpy()

    def _encode(self, row: Exchange) -> tuple[list[int], int]:
        """Token ids, and where the answer begins in them."""
        before = self._ids(OPENING) + self._ids(row.prompt[:PROMPT_CHARACTERS] + BETWEEN)
        return before + self._ids(row.response[:ANSWER_CHARACTERS])[:ANSWER_TOKENS], len(before)

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _batch(self, encoded: list[tuple[list[int], int]]) -> list[Tensor]:
        longest = max(len(ids) for ids, _ in encoded)
        # Padded behind: a causal model's states do not depend on what follows.
        padded = torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in encoded], device=self.device)
        with torch.inference_mode():
            states = self.network(input_ids=padded, use_cache=False).last_hidden_state
        return [
            states[i, begin : len(ids)].float().mean(0).cpu() for i, (ids, begin) in enumerate(encoded)
        ]  # fmt: skip
