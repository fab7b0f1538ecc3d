"""A prompt put into the past tense by rule (Andriushchenko, Flammarion, "Does Refusal Training in LLMs Generalize to
the Past Tense?", ICLR 2025, arXiv 2407.11969; there a language model rewrites, with up to twenty tries).

"How do I open a jar?" becomes "How did people open a jar?". Each sentence is changed at its first verb that the table
has: an auxiliary goes into the past, and whoever asks becomes "people"; an instruction becomes a question about how
people did it. A prompt without such a sentence gets a sentence before it that says when it was asked.
"""

import re

from dcr_lite.probe.wordings import IN_THE_PAST

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
_ASKER = r"(?:i|we|you|one)"
_PAST = {
    "do": "did", "does": "did", "can": "could", "may": "might", "shall": "should", "will": "would", "am": "was",
    "is": "was", "are": "were", "has": "had", "have": "had", "don't": "didn't", "doesn't": "didn't",
    "can't": "couldn't", "won't": "wouldn't", "isn't": "wasn't", "aren't": "weren't",
}  # fmt: skip
_WH = r"(?:how|what|when|where|which|who|whom|whose|why)"
# How somebody may act: "how do I", "how could we", "how should one", and "how to".
_HOW_TO = re.compile(
    rf"\bhow (?:to|(?:do|can|could|should|would|might|may|will|shall) {_ASKER})\b", re.IGNORECASE
)  # fmt: skip
_HOW_TO_OF_AN_INSTRUCTION = re.compile(
    rf"(^|[;:,] )(?:please )?(?:explain|describe|show|tell|teach)(?: (?:me|us))? "
    rf"(?=how (?:to|(?:do|can|could|should|would) {_ASKER})\b)", re.IGNORECASE,
)  # fmt: skip
_ASKED = re.compile(rf"\b(?:do|can|could|should|would|may|might|shall|will) {_ASKER}\b", re.IGNORECASE)
_SHORTENED = re.compile(rf"\b({_WH})'s\b", re.IGNORECASE)
# Behind "to" and "they" it is no auxiliary: "what should they do?"
_AUXILIARY = re.compile(
    rf"(?<!\bto )(?<!\bthey )\b(?:{'|'.join(sorted(_PAST, key=len, reverse=True))})(?!['\w])", re.IGNORECASE
)
_INSTRUCTION = re.compile(
    r"^(?:please )?(argue|build|coach|compose|convince|defend|describe|design|draft|explain|find|give|help|invent|list"
    r"|make|name|outline|plan|recommend|show|suggest|summari[sz]e|talk|teach|tell|translate|write)\b(.*?)[.!?]*$",
    re.IGNORECASE | re.DOTALL,
)  # fmt: skip


def past_tense(prompt: str) -> str:
    """The prompt in the past tense."""
    sentences = _SENTENCE_END.split(prompt)
    changed = [_in_the_past(sentence) for sentence in sentences]
    if changed == sentences:
        return IN_THE_PAST.format(prompt=prompt)
    return " ".join(changed)


def _in_the_past(sentence: str) -> str:
    """One sentence, as it was where no rule applies."""
    sentence, instructions = _HOW_TO_OF_AN_INSTRUCTION.subn(r"\1", sentence)
    if instructions:
        sentence = sentence.rstrip(".!?") + "?"
    for pattern, past in (
        (_HOW_TO, "how did people"),
        (_ASKED, "did people"),
        (_SHORTENED, r"\1 was"),
        (_INSTRUCTION, r"how did people \1\2?"),
        (_AUXILIARY, lambda found: _PAST[found[0].lower()]),
    ):
        changed, times = pattern.subn(past, sentence, count=1)
        if times:
            if pattern is _INSTRUCTION:
                changed = re.sub(r"(how did people )(\w)", lambda found: found[1] + found[2].lower(), changed, count=1)
            return changed[0].upper() + changed[1:] if sentence[0].isupper() or instructions else changed
    return sentence
