"""A text classifier as a judge: any sequence classification model in a folder or on the Hub.

Its labels and its way of writing a conversation are found on shipped answers (evidence.py). No code of the model's own
is run, and only weights in safetensors are read.
"""

import contextlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from dcr_lite.data.sources import locate
from dcr_lite.errors import UserError, first_line
from dcr_lite.judges.evidence import Probabilities, Reading, read_by_evidence
from dcr_lite.judges.interface import Exchange
from dcr_lite.measure.judge import MAX_CHARACTERS
from dcr_lite.model.cuda import device_of
from dcr_lite.model.loading import best_precision, in_halves

PROMPT_CHARACTERS = 1_000  # of a prompt: the answer, which stands behind it, has to be within the window
LONGEST = 1_024  # tokens of a row; more than both limits of characters come to
BATCH = 16  # rows of similar length

OWN_TEMPLATE = "chat template"
PAIR = "pair"
ANSWER = "answer alone"
# How classifiers of conversations are trained, by what their pages show: NousResearch/Minos-v1 and its kin with the
# first, those on Gemma's tokenizer (jhu-clsp/mmBERT-base) with the second.
MARKERS = {
    "<|user|>": "<|user|>\n{prompt}\n<|assistant|>\n{response}",
    "<start_of_turn>": (
        "<start_of_turn>user\n{prompt}<end_of_turn>\n<start_of_turn>assistant\n{response}<end_of_turn>"
    ),
}

Text = tuple[str, ...]  # what the tokenizer takes: a text, or a pair of two


class ClassifierJudge:
    """A text classifier. ``reading`` says which labels count and what it reads; ``labels`` are the names of all."""

    def __init__(self, name: str, device: str = "auto"):
        """Load it and find out how to read it. Raises UserError where it cannot be had, or does not tell refusals from
        answers."""
        self.name = name
        try:
            folder, _ = locate(name)
        except UserError as error:
            raise UserError(f"--judge {name}: {str(error).replace('--model', '--judge')}") from None
        self.device = device_of(device)
        self.network, self.tokenizer = _load(name, folder, self.device)
        config = self.network.config
        limits = (LONGEST, self.tokenizer.model_max_length, getattr(config, "max_position_embeddings", LONGEST))
        self.window = min(limits)
        self.labels = [config.id2label[number] for number in range(config.num_labels)]
        if config.num_labels == 1:  # a single logit is the log-odds of its label
            self.labels.insert(0, f"not {self.labels[0]}")
        self.reading: Reading = read_by_evidence(name, self.labels, self._forms(), self._probabilities)

    def scores(self, rows: Sequence[Exchange]) -> list[float]:
        """The probability of the labels that mean refusal, for each row."""
        if not rows:
            return []
        found = self._probabilities(self.reading.form, list(rows))
        return [float(score) for score in found[:, self.reading.labels].sum(1)]

    def _forms(self) -> list[str]:
        forms = [*MARKERS, PAIR, ANSWER]
        if getattr(self.tokenizer, "chat_template", None):
            with contextlib.suppress(UserError):  # one that cannot write a conversation is not what it was trained on
                self._text(OWN_TEMPLATE, Exchange("Hello", "Hello"))
                forms.insert(0, OWN_TEMPLATE)
        return forms

    def _text(self, form: str, row: Exchange) -> Text:
        prompt, response = row.prompt[:PROMPT_CHARACTERS], row.response[:MAX_CHARACTERS]
        if form == PAIR:
            return prompt, response
        if form == ANSWER:
            return (response,)
        if form == OWN_TEMPLATE:
            turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
            try:
                return (str(self.tokenizer.apply_chat_template(turns, tokenize=False)),)
            except Exception as error:  # a template is a program in a sandbox: it can fail in any way
                raise UserError(f"--judge {self.name}: its chat template fails ({first_line(error)})") from None
        return (MARKERS[form].replace("{response}", response, 1).replace("{prompt}", prompt, 1),)

    def _probabilities(self, form: str, rows: list[Exchange]) -> Probabilities:
        """(rows, labels)"""
        texts = [self._text(form, row) for row in rows]
        order = sorted(range(len(texts)), key=lambda i: sum(map(len, texts[i])))  # little padding in a batch
        found = np.zeros((len(texts), len(self.labels)))
        for start in range(0, len(order), BATCH):
            chosen = order[start : start + BATCH]
            found[chosen] = in_halves(self._batch, [texts[i] for i in chosen])
        return found

    def _batch(self, texts: list[Text]) -> list[list[float]]:
        columns = [list(column) for column in zip(*texts, strict=True)]
        encoded = self.tokenizer(
            *columns, padding=True, truncation=True, max_length=self.window, return_tensors="pt"
        )  # fmt: skip
        with torch.inference_mode():
            logits = self.network(**encoded.to(self.device)).logits.float()
        if logits.shape[1] == 1:
            logits = torch.cat([torch.zeros_like(logits), logits], dim=1)
        return logits.softmax(-1).tolist()


def _load(name: str, folder: str, device: str) -> tuple[Any, Any]:
    """(network, tokenizer). Raises UserError for what is no text classifier, or damaged."""
    try:
        network = AutoModelForSequenceClassification.from_pretrained(
            folder, dtype=best_precision(device), trust_remote_code=False, use_safetensors=True
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # transformers raises errors of every kind for a folder that is not as it should be
        raise UserError(f"--judge {name}: it cannot be loaded as a text classifier ({first_line(error)})") from None
    architectures = network.config.architectures or []
    if not any(one.endswith("ForSequenceClassification") for one in architectures):
        # transformers gives any other model a random head, with a warning.
        raise UserError(f"--judge {name}: not a text classifier, but {', '.join(architectures) or 'of no known kind'}")
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise UserError(
                f"--judge {name}: its tokenizer has no token to fill rows up with. Name one as pad_token in its "
                "tokenizer_config.json."
            )
        tokenizer.pad_token = tokenizer.eos_token
    network.config.pad_token_id = tokenizer.pad_token_id  # decoders read the state of the last token before it
    return network.to(device).eval(), tokenizer
