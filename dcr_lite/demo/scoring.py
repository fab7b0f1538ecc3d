"""One prompt, or many, scored by the models of a run: what the demo and the command line show.

A run is opened as one network with its adapters, and each row of a batch is of one of its models. One thread computes,
in short pieces of work; it never waits for a client. So many clients may score at once, each with its own model and
strength; their answers are decoded together (batching.py).
"""

import copy
import threading
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from dcr_lite.data.sources import SMOLLM2
from dcr_lite.demo.batching import Batching
from dcr_lite.demo.dial import OpenDial, open_dial
from dcr_lite.demo.models_at_once import ModelsAtOnce, Which
from dcr_lite.demo.prompt_text import cleaned, pieces_of
from dcr_lite.demo.score import Score, Word
from dcr_lite.demo.texts import MODEL_ALONE, MODEL_TITLES, NO_DIAL, NO_READING, NO_RUN, OLD_STAYS
from dcr_lite.errors import UserError
from dcr_lite.files import exists
from dcr_lite.measure.judge import is_refusal, verdict_is_final
from dcr_lite.measure.kinds import kind_of
from dcr_lite.method.dial import set_strength
from dcr_lite.model import adapters
from dcr_lite.model.chat import OWN, Message, encode_messages, encode_prompts
from dcr_lite.model.generation import answer
from dcr_lite.model.hidden_states import depth, width_of
from dcr_lite.model.loading import Model
from dcr_lite.model.memory import PROMPT_TOKENS
from dcr_lite.model.states import layer_states
from dcr_lite.model.streaming import Growing
from dcr_lite.model.titles import model_title
from dcr_lite.names import DCR, MENDED, ONLY_TURNED, STOCK, models_of
from dcr_lite.run.caution import caution_of
from dcr_lite.run.discernment import Discernments, Similarity
from dcr_lite.run.model_card import is_hub_name
from dcr_lite.run.opening import adapter_of, is_run_folder, knows_openings, load_base, model_settings_of
from dcr_lite.run.run_folder import stored_settings
from dcr_lite.run.terminal import quoted
from dcr_lite.settings import ChatFormat, Device, ModelSettings, Settings

ANSWER_TOKENS = 80  # of a streamed answer: a few sentences, three seconds on two cores
CHAT_TOKENS = 160  # of an answer in a conversation: it is what the next turn is about
LIST_TOKENS = 40  # of an answer that is only judged, as in a run's own evaluation
MAX_PROMPT_TOKENS = 1_024  # longer ones would keep two cores busy for many seconds
MAX_PIECES = 40  # of a prompt, left out one by one
# In all copies of a prompt with a piece left out: about a second on two cores. At least MAX_PROMPT_TOKENS.
WEIGHED_TOKENS = 1_536
MAX_ROWS = 500  # of a list
LIST_BATCH = 16  # prompts of a list that are answered at once, beside those of other clients


class OpenRun:
    """One network with the adapters of a run, ready to score.

    names: of its models, DCR first: "dcr", "safety_sft" where the run trained it, "base"; without a run "base" alone.
        The last is "mended" once that is open.
    discernments: what similarities and the map are computed with; None where the run has no such file.
    dial: of DCR; None where the run has none.
    title: model and run folder, without paths. note: what is missing, and how to get it; often empty.
    titles: of each model with its run. mended: the run whose model is open beside them; None before there is one.
    """

    def __init__(
        self, model: Model, names: tuple[str, ...], discernments: Discernments | None, dial: OpenDial | None,
        title: str, note: str,
    ):  # fmt: skip
        self.model, self.names, self.discernments, self.dial = model, names, discernments, dial
        self.title, self.note = title, note
        self.mended: Path | None = None
        self.titles = {name: f"{MODEL_TITLES[name]}, {title}" for name in names}
        # Works in the order of asking. Each thread that computes would keep freed memory, and helpers, of its own.
        self._worker = ThreadPoolExecutor(1, "model")
        self._weighing = threading.Lock()  # words are weighed one prompt at a time, in turn with the batches
        self._models = ModelsAtOnce(model, names, dial)
        # Half of what the memory plan has room for. The other half is for the weights of words.
        room = model.prompts_at_once * (PROMPT_TOKENS + LIST_TOKENS) // 2
        self._batching = Batching(model, self._worker, self._models.set_rows, self._notes, room)
        # A tokenizer that encodes changes its settings for the time: nobody else may use this one.
        self._tokenizer, self._encoding = copy.deepcopy(model.tokenizer), threading.Lock()

    def strength_of(self, name: str, strength: Any = None) -> float | None:
        """The strength of the dial that a model is asked with: as given, else the run's own. Raises UserError for an
        unknown model, for a strength that is none, and for one of a model that has no dial."""
        if name not in self.names:
            raise UserError(f"no model {name!r}; choose one of {', '.join(self.names)}")
        if self.dial and name == DCR:
            return self.dial.setting.strength if strength is None else self.dial.require(strength)
        if strength is not None:
            raise UserError(NO_DIAL if name == DCR else f"the dial is DCR's: {MODEL_TITLES[name]} has no strength")
        return None

    def open_mended(self, run: Path) -> None:
        """Have one model more, MENDED: that of a run which mended this base model, its dial as it stands there. Nothing
        changes where it is open already. Raises UserError for a run that is not finished, and for an adapter that is
        damaged or of another model."""
        self._worker.submit(self._open_mended, run, adapter_of(run, DCR)).result()

    def _open_mended(self, run: Path, adapter: Path) -> None:
        """In the thread that computes: of clients that ask for the same at once only the first has it opened."""
        if MENDED in self.names and self.mended == run:
            return
        self._models.add(MENDED, adapter)
        self.mended, self.titles[MENDED] = run, f"{MODEL_TITLES[MENDED]}, run {run.name}"
        self.names = (*(name for name in self.names if name != MENDED), MENDED)

    def _encode(self, prompts: list[str], answer_tokens: int) -> list[list[int]]:
        with self._encoding:
            return encode_prompts(self._tokenizer, prompts, self._window(answer_tokens))

    def _window(self, answer_tokens: int) -> int:
        return min(self.model.window - answer_tokens, MAX_PROMPT_TOKENS)

    def _notes(self, begun: Sequence[Growing]) -> list[Similarity | None]:
        """What is read of the prompts of answers that begin: their similarities, without the dial."""
        notes: list[Similarity | None] = [None] * len(begun)
        for name, reading in self.discernments.models.items() if self.discernments else ():
            places = [i for i, answer in enumerate(begun) if answer.which[0] == name]
            if places and self.discernments:
                self._models.set_rows([(name, None)])
                states = layer_states(self.model, [begun[i].row for i in places], self.discernments.layer)
                for i, similarity in zip(places, reading.read(states), strict=True):
                    notes[i] = similarity
        return notes

    def _log_odds(self, which: Which, rows: list[list[int]]) -> list[float]:
        """Refusal log-odds of prompts given as token ids."""
        self._models.set_rows([which])
        return [one.refusal_log_odds for one in answer(self.model, rows, max_new_tokens=0)]

    def weigh(self, name: str, prompt: str, strength: float | None = None) -> tuple[Word, ...]:
        """The words of a cleaned prompt with their weights by occlusion: each is left out once, all in one batch."""
        strength = self.strength_of(name, strength)
        row = self._encode([prompt], 0)[0]
        pieces = pieces_of(prompt, min(MAX_PIECES, WEIGHED_TOKENS // len(row)))
        rows = [row, *self._encode([prompt[:start] + prompt[stop:] for start, stop in pieces], 0)]
        which = self._models.adapters[name], strength
        with self._weighing:
            whole, *without = self._worker.submit(self._log_odds, which, rows).result()
        return tuple(
            Word(prompt[start:stop], start, stop, whole - rest)
            for (start, stop), rest in zip(pieces, without, strict=True)
        )

    def stream(
        self, name: str, prompt: str, words: bool = True, tokens: int = ANSWER_TOKENS, strength: float | None = None
    ) -> Iterator[Score]:
        """The score as it grows: probability and similarity first, then the words, then the answer in parts; the last
        is complete. strength: of the dial; by default the run's own. Raises UserError as ``converse``."""
        prompt = cleaned(prompt)
        return self._grow(name, prompt, self._encode([prompt], tokens)[0], words, tokens, strength)

    def converse(
        self, name: str, messages: list[Message], tokens: int = CHAT_TOKENS, strength: float | None = None
    ) -> Generator[Score, None, None]:
        """The score of the answer to the last of ``messages`` as it grows, without similarity, which is calibrated on
        prompts that stand alone. Raises UserError as ``encode_messages`` does, before anything is computed."""
        with self._encoding:
            row = encode_messages(self._tokenizer, messages, self._window(tokens))
        grown = self._grow(name, messages[-1]["content"], row, False, tokens, strength)
        return (replace(score, similarity=None) for score in grown)

    def _grow(
        self, name: str, prompt: str, row: list[int], words: bool, tokens: int, strength: float | None
    ) -> Iterator[Score]:
        """As ``stream``, of a prompt given as token ids as well."""
        strength = self.strength_of(name, strength)
        with self._batching.answering((self._models.adapters[name], strength), [row], tokens) as (speech,):
            log_odds = self._batching.begin(speech)
            score = Score(name, prompt, log_odds, speech.note, strength=strength)
            yield score
            if words:
                score = replace(score, words=self.weigh(name, prompt, strength))
                yield score
            for text in self._batching.growing(speech):
                score = replace(score, answer=text)
                if score.refused is None and verdict_is_final(text):
                    score = replace(score, refused=is_refusal(text))
                yield score
        refused = is_refusal(score.answer)
        yield replace(score, refused=refused, kind=kind_of(prompt, score.answer, refused))

    def score(
        self, name: str, prompt: str, words: bool = True, tokens: int = ANSWER_TOKENS, strength: float | None = None
    ) -> Score:
        """The complete score."""
        *_, last = self.stream(name, prompt, words, tokens, strength)
        return last

    def score_list(self, name: str, prompts: list[str], strength: float | None = None) -> list[Score]:
        """The scores of many prompts, in order, as ``score_batches``."""
        return [score for batch in self.score_batches(name, prompts, strength) for score in batch]

    def score_batches(self, name: str, prompts: list[str], strength: float | None = None) -> Iterator[list[Score]]:
        """The scores of many prompts, without word weights, batch by batch; answers end as soon as their verdict is
        final. Raises UserError for a prompt that cannot be scored, with its place in the list."""
        strength = self.strength_of(name, strength)
        if not isinstance(prompts, list):
            raise UserError(f"the prompts are not a list but {type(prompts).__name__}")
        if len(prompts) > MAX_ROWS:
            raise UserError(f"the list has {len(prompts):,} prompts; the limit is {MAX_ROWS}. Split it.")
        rows, texts = [], []
        for number, prompt in enumerate(prompts, 1):
            try:
                texts.append(cleaned(prompt))
                rows.append(self._encode(texts[-1:], LIST_TOKENS)[0])
            except UserError as error:
                raise UserError(f"prompt {number} of {len(prompts)}: {error}") from None
        which = self._models.adapters[name], strength
        for start in range(0, len(rows), LIST_BATCH):
            batch = rows[start : start + LIST_BATCH]
            with self._batching.answering(which, batch, LIST_TOKENS, stop=verdict_is_final) as said:
                answers = [(self._batching.begin(one), self._batching.whole(one)) for one in said]
            scores = []
            for prompt, one, (log_odds, text) in zip(texts[start:], said, answers, strict=False):
                refused = is_refusal(text)
                kind = None if refused else kind_of(prompt, text, refused)  # help after a refusal was not waited for
                scores.append(Score(name, prompt, log_odds, one.note, (), text, refused, strength, kind))
            yield scores


# --- opening ----------------------------------------------------------------------------------------------------------


def newest_run(folder: Path = Path("runs"), cautioned: bool = False) -> Path | None:
    """The run folder that was finished last, of those that nothing speaks against, or ``cautioned`` of those that
    something does; None where there is none."""
    reports = [report for report in folder.glob("*/report.json") if bool(caution_of(report.parent)) == cautioned]
    return max(reports, key=lambda path: path.stat().st_mtime).parent if reports else None


def stock_of_no_run() -> tuple[ModelSettings, str]:
    """The model that is shown where ``newest_run`` has none, with a note that says why: that which the newest mended
    run began with, since the old model stays the default; without any run the kit's."""
    if run := newest_run(cautioned=True):
        settings = model_settings_of(run)
        if exists(settings.model) or is_hub_name(settings.model):  # its folder may have been removed since
            return settings, OLD_STAYS.format(run=quoted(run))
    return ModelSettings(model=SMOLLM2), NO_RUN


def open_run(
    folder: Path | None = None, device: Device = "auto", alone: str | None = None, chat_format: ChatFormat = "own"
) -> OpenRun:
    """The models of a run: of ``folder``, else of the newest finished one, else a stock model alone with a note.
    alone: in place of a run a model by its name or folder, without adapters. chat_format: of that model, where its
    tokenizer brings none.

    Raises UserError for a folder that is no run, one that is not finished, or a damaged one; for both a run and a model
    alone, and for one that is a run folder, or cannot be found or loaded; for a chat format without such a model.
    """
    if folder and alone:
        raise UserError("--run and --model stand for each other: give one")
    if alone:
        if is_run_folder(Path(alone)):
            raise UserError(f"--model {alone}: a run folder. Give it with --run.")
        return _open_alone(ModelSettings(model=alone, chat_format=chat_format), MODEL_ALONE, device)
    if chat_format != OWN:
        raise UserError("--chat-format is of a model that --model names: a run has the format that it was trained with")
    if (folder := folder or newest_run()) is None:
        return _open_alone(*stock_of_no_run(), device)
    settings, whole = model_settings_of(folder), stored_settings(folder, Settings, run=folder)
    names = models_of(whole.compare_with)[::-1]
    parts = {name: adapter_of(folder, name) for name in names if name != STOCK}
    discernments = Discernments.load(parts[DCR])
    model, _ = load_base(replace(settings, device=device, backend="transformers"))
    knows_openings(model, folder)
    for name, part in parts.items():
        adapters.load_adapter(model, name, part)
    if discernments and not discernments.fits(names, depth(model.network), width_of(model.network)):
        raise UserError(f"{parts[DCR]}: its similarity scores are of another model. Restore the run folder.")
    if dial := open_dial(folder):
        set_strength(model, DCR, dial.dial, None)  # the adapter is stored with it; now each row has its own
    notes = [caution_of(folder), NO_READING if not discernments else ONLY_TURNED if whole.only_turned else ""]
    return OpenRun(model, names, discernments, dial, model_title(settings.model), " ".join(filter(None, notes)))


def _open_alone(settings: ModelSettings, note: str, device: Device) -> OpenRun:
    model, _ = load_base(replace(settings, device=device))
    return OpenRun(model, (STOCK,), None, None, model_title(settings.model), note)
