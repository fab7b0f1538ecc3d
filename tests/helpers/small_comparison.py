"""What makes a comparison of all methods on a tiny model a matter of seconds, and possible: a random model neither
refuses nor answers."""

from collections.abc import Callable
from typing import Any

from dcr_lite.compare import actor, command, dpo, methods, preferences, prosafeprune, scans, steered, surgical
from dcr_lite.method import safety_sft
from dcr_lite.run import dial

Set = Callable[[object, str, Any], object]  # setattr, or that of a test which puts everything back


def make_small(set_: Set) -> None:
    """Short answers to learn preferences from, of which those that begin with an I refuse; searches among two
    candidates or hardly more, which the tests of each method look at; no pictures of the dials, and no second spent on
    measuring the processor."""
    set_(command, "matrix_rate", lambda device, precision: 1e10)
    set_(safety_sft, "OBSERVATIONS", 1)  # of probabilities along a training, which no comparison reads
    set_(actor, "ALPHAS", (0.5, 1.0))  # each is a training
    set_(actor, "EPOCHS", 2)
    set_(dpo, "OBSERVATIONS", 2)
    set_(preferences, "TOKENS", 8)
    set_(preferences, "is_refusal", lambda text: text.startswith("I"))
    set_(preferences, "is_broken", lambda prompt, text: not text)
    set_(steered, "STRENGTHS", (-0.5, 0.5))
    set_(scans, "STRENGTHS", (0.25, 0.5))
    set_(surgical, "DISCARDED", 0.75)  # of the layers: each candidate is tried on all prompts
    for name, few in (("WINDOWS", (2,)), ("RANKS", (1,)), ("FINALISTS", 2)):
        set_(prosafeprune, name, few)
    set_(methods, "ANSWERED", (0.8,))
    set_(dial, "LAST", 0.8)
    set_(dial, "draw_dial", lambda setting, path: None)
