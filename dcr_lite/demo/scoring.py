"""One prompt, or many, scored by the models of a run: what the demo and the command line show.

A run is opened as one network that holds both adapters. Whoever scores switches them under a lock that is held for one
step of work and never while waiting for a reader, so several may score at once without mixing models.
"""

import math
import re
import threading
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from dcr_lite.data.sources import SMOLLM2
from dcr_lite.errors import UserError
from dcr_lite.measure.judge import is_refusal, verdict_is_final
from dcr_lite.model import adapters
from dcr_lite.model.chat import encode_prompts
from dcr_lite.model.generation import StreamedAnswer, answer
from dcr_lite.model.loading import Model
from dcr_lite.model.states import layer_states
from dcr_lite.names import BASELINE, DCR, STOCK
from dcr_lite.run import opening
from dcr_lite.run.discernment import Discernments, Similarity
from dcr_lite.run.opening import settings_of
from dcr_lite.settings import Settings

ANSWER_TOKENS = 80  # of a streamed answer: a few sentences, three seconds on two cores
LIST_TOKENS = 40  # of an answer that is only judged, as in a run's own evaluation
LOOK_EVERY = 4  # tokens between looks at whether the verdict stands
MAX_CHARACTERS = 8_000  # of a prompt, before it is cut into tokens
MAX_PROMPT_TOKENS = 1_024  # longer ones would keep two cores busy for many seconds
MAX_PIECES = 40  # of a prompt, weighed one by one
WEIGHED_TOKENS = 1_536  # in all copies of a prompt with a piece left out: about a second on two cores
MAX_ROWS = 500  # of a list
LIST_BATCH = 16  # prompts of a list between which others have their turn
HOW_TO_GET_A_RUN = (
    "No finished run was found, so this is the stock model alone. `make train` makes a run in six to ten minutes "
    "on two cores; then start again to see all three models, the similarity scores and the map."
)
# A word, or one character of a script that puts no spaces between words.
PIECE = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\s\u3040-\u30ff\u3400-\u9fff]+")


@dataclass(frozen=True)
class Word:
    """A piece of the prompt and its weight: by how much the log-odds of refusing fall when it is left out (negative:
    they rise). start, stop: its place in the prompt, in characters."""

    text: str
    start: int
    stop: int
    weight: float


@dataclass(frozen=True)
class Score:
    """What one model makes of one prompt.

    refusal_log_odds: of beginning with a refusal, read before any token is chosen.
    similarity: of the prompt's layer-L state to the two kinds; None where the run has no reading of them.
    words: every piece with its weight, in order; empty where nobody asked or the prompt is too long to weigh.
    answer: what the model has said so far. refused: the judge's verdict on it; None until it stands.
    """

    model: str
    prompt: str
    refusal_log_odds: float
    similarity: Similarity | None = None
    words: tuple[Word, ...] = ()
    answer: str = ""
    refused: bool | None = None

    @property
    def refusal_probability(self) -> float:
        """Of beginning with a refusal, 0 to 1."""
        return 1 / (1 + math.exp(-max(-700.0, self.refusal_log_odds)))

    def for_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self) | {"refusal_probability": self.refusal_probability}


def cleaned(prompt: str) -> str:
    """The prompt without control characters and halves of characters. Raises UserError for an empty or over-long
    one."""
    if len(prompt) > MAX_CHARACTERS:
        raise UserError(f"the prompt has {len(prompt):,} characters; the limit is {MAX_CHARACTERS:,}. Shorten it.")
    text = prompt.replace("\r\n", "\n")
    text = "".join(c for c in text if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cs")).strip()
    if not text:
        raise UserError("the prompt is empty. Type a question first.")
    return text


def pieces_of(prompt: str, most: int) -> list[tuple[int, int]]:
    """Where the words of a prompt begin and end; more than ``most`` are joined to runs of words."""
    words = [match.span() for match in PIECE.finditer(prompt)]
    size = -(-len(words) // max(1, most))
    return [(words[i][0], words[min(i + size, len(words)) - 1][1]) for i in range(0, len(words), max(1, size))]


class OpenRun:
    """One network with the adapters of a run, ready to score.

    names: the models that it can be, DCR first: "dcr", "safety_sft", "base"; without a run "base" alone.
    discernments: how to read layer-L states, where the run has it. note: what a user should know; often empty.
    """

    def __init__(self, model: Model, names: tuple[str, ...], discernments: Discernments | None, title: str, note: str):
        self.model, self.names, self.discernments = model, names, discernments
        self.title, self.note = title, note
        self._lock = threading.Lock()
        self._active = ""

    @contextmanager
    def using(self, name: str) -> Iterator[Model]:
        """Within the block the network is the model ``name``, and nobody else's. Raises UserError for no such one."""
        if name not in self.names:
            raise UserError(f"no model {name!r} here; there is {', '.join(self.names)}")
        with self._lock:
            if name != self._active:
                self._active = ""  # in between, should the switch fail
                adapters.switch(self.model, None if name == STOCK else name)
                self._active = name
            yield self.model

    def _encode(self, prompts: list[str], room: int) -> list[list[int]]:
        window = min(self.model.window - room, MAX_PROMPT_TOKENS)
        return encode_prompts(self.model.tokenizer, prompts, window)

    def _similarities(self, name: str, rows: list[list[int]]) -> list[Similarity] | list[None]:
        """Of prompts given as token ids; called within ``using(name)``."""
        if self.discernments is None or name not in self.discernments.models:
            return [None] * len(rows)
        return self.discernments.models[name].read(layer_states(self.model, rows, self.discernments.layer))

    def weigh(self, name: str, prompt: str) -> tuple[Word, ...]:
        """The words of a cleaned prompt by occlusion: each is left out once, all in one pass. Empty for a prompt that
        is too long to be copied twice."""
        row = self._encode([prompt], 0)[0]
        pieces = pieces_of(prompt, min(MAX_PIECES, WEIGHED_TOKENS // len(row)))
        if len(row) * len(pieces) > 2 * WEIGHED_TOKENS:
            return ()
        rows = [row, *self._encode([prompt[:start] + prompt[stop:] for start, stop in pieces], 0)]
        with self.using(name) as model:
            whole, *without = (a.refusal_log_odds for a in answer(model, rows, max_new_tokens=0))
        return tuple(
            Word(prompt[start:stop], start, stop, whole - rest)
            for (start, stop), rest in zip(pieces, without, strict=True)
        )

    def stream(self, name: str, prompt: str, words: bool = True, tokens: int = ANSWER_TOKENS) -> Iterator[Score]:
        """A score that grows: probability and similarity first, then the words, then the answer token by token. The
        last one is whole."""
        prompt = cleaned(prompt)
        row = self._encode([prompt], tokens)[0]
        with self.using(name) as model:
            similarity = self._similarities(name, [row])[0]
            speech = StreamedAnswer(model, row, tokens)
        score = Score(name, prompt, speech.refusal_log_odds, similarity)
        yield score
        if words:
            score = replace(score, words=self.weigh(name, prompt))
            yield score
        said = 0
        while not speech.ended:
            with self.using(name):
                speech.step()
            said += 1
            score = replace(score, answer=speech.text)
            if score.refused is None and said % LOOK_EVERY == 0 and verdict_is_final(score.answer):
                score = replace(score, refused=is_refusal(score.answer))
            yield score
        yield replace(score, refused=is_refusal(score.answer))

    def score(self, name: str, prompt: str, words: bool = True, tokens: int = ANSWER_TOKENS) -> Score:
        """The whole score at once."""
        *_, last = self.stream(name, prompt, words, tokens)
        return last

    def score_list(
        self, name: str, prompts: list[str], progress: Callable[[int, int], None] = lambda done, total: None
    ) -> list[Score]:
        """Many prompts, without word weights; an answer goes as far as its verdict needs. ``progress(done, total)`` is
        called after each batch. Raises UserError for a prompt that cannot be scored, naming its place in the list."""
        if len(prompts) > MAX_ROWS:
            raise UserError(f"the list has {len(prompts):,} prompts; the limit is {MAX_ROWS}. Split it.")
        rows, texts = [], []
        for number, prompt in enumerate(prompts, 1):
            try:
                texts.append(cleaned(prompt))
                rows.append(self._encode(texts[-1:], LIST_TOKENS)[0])
            except UserError as error:
                raise UserError(f"prompt {number} of {len(prompts)}: {error}") from None
        scores: list[Score] = []
        for start in range(0, len(rows), LIST_BATCH):
            batch = rows[start : start + LIST_BATCH]
            with self.using(name) as model:
                said = answer(model, batch, LIST_TOKENS, stop=verdict_is_final)
                similarities = self._similarities(name, batch)
            for text, one, similarity in zip(texts[start:], said, similarities, strict=False):
                refused = is_refusal(one.text)
                scores.append(Score(name, text, one.refusal_log_odds, similarity, (), one.text, refused))
            progress(len(scores), len(rows))
        return scores


# --- opening ----------------------------------------------------------------------------------------------------------


def newest_run(folder: Path = Path("runs")) -> Path | None:
    """The run folder that was finished last; None where there is none."""
    reports = list(folder.glob("*/report.json"))
    return max(reports, key=lambda path: path.stat().st_mtime).parent if reports else None


def open_run(folder: Path | None = None) -> OpenRun:
    """The models of a run: of ``folder``, else of the newest finished one, else the stock model alone with a note.

    Raises UserError for a folder that is no run, one that is not finished, or a damaged one.
    """
    folder = folder or newest_run()
    if folder is None:
        model, _ = opening.load_base(Settings(model=SMOLLM2, run=Path("runs"), layer=0))
        return OpenRun(model, (STOCK,), None, SMOLLM2, HOW_TO_GET_A_RUN)
    settings = settings_of(folder)
    weights = {DCR: folder / "adapter", BASELINE: folder / BASELINE}
    for part in weights.values():
        if not (part / "adapter_model.safetensors").exists():
            raise UserError(f"{folder} holds a run that is not finished ({part.name}/ is missing): --resume it first.")
    discernments = Discernments.load(weights[DCR])
    model, _ = opening.load_model(settings)
    for name, part in weights.items():
        _put(model, name, part / "adapter_model.safetensors")
    note = (
        "" if discernments else f"{folder} is of an earlier version: no similarity scores, no map. A new run has them."
    )
    return OpenRun(model, (DCR, BASELINE, STOCK), discernments, f"{settings.model}, {folder}", note)


def _put(model: Model, name: str, file: Path) -> None:
    damaged = UserError(f"{file} is damaged or of another model. Restore the run folder, or choose another --run.")
    try:
        weights = load_file(file)
        if weights.keys() != adapters.adapter_weights(model, name).keys():
            raise damaged
        adapters.set_adapter_weights(model, name, weights)
    except (SafetensorError, OSError, RuntimeError):  # torch's own for weights of another shape
        raise damaged from None
