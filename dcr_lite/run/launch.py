"""From the command line to a recipe's main function: flags, one-line error messages, and how to continue."""

import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

import tyro

from dcr_lite.errors import sentence
from dcr_lite.interrupts import printing, sigterm_as_ctrl_c
from dcr_lite.model.unsloth import prepare
from dcr_lite.run.cards import show_cards
from dcr_lite.run.obstacles import is_new
from dcr_lite.run.void_flags import require_effect
from dcr_lite.settings import Settings

AnySettings = TypeVar("AnySettings", bound=Settings)


@printing()
def launch(
    main: Callable[[AnySettings], None],
    defaults: AnySettings,
    argv: Sequence[str] | None = None,
    words: Sequence[str] = (),
    about: str | None = None,
) -> None:
    """Run a recipe's ``main`` with the settings that the command line gives.

    ``words``: those between ``dcr-lite`` and the flags; none where the recipe was started as a script.
    ``about``: what --help says, else the recipe's docstring.
    Exits with 1 for an error that a user can fix and with 130 when interrupted.
    """
    sigterm_as_ctrl_c()
    flags = sys.argv[1:] if argv is None else list(argv)
    settings = tyro.cli(
        type(defaults),
        default=defaults,
        args=flags,
        prog=f"dcr-lite {' '.join(words)}" if words else None,
        description=about or sys.modules[main.__module__].__doc__,
    )
    try:
        if not settings.resume or is_new(settings.run):  # one that goes on has the flags that it was begun with
            require_effect(settings, flags)
        if settings.plan:
            from dcr_lite.run.inputs import resolved

            show_cards(resolved(replace(settings, data="shipped")))  # it needs no rows
        else:
            prepare(settings.backend, settings.device)
            _start(main, settings)
    except Exception as error:
        if (said := sentence(error, "go on with --resume")) is None:
            raise
        _say(f"\nerror: {said}")
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        again = [*_command(words), *flags, *([] if settings.resume else ["--resume"])]
        _say(f"\nstopped; what is done is kept. Continue with:\n  {shlex.join(again)}")
        raise SystemExit(130) from None


def _command(words: Sequence[str]) -> list[str]:
    """What starts this recipe in the form in which it was started, without its flags."""
    if not _several():
        return ["dcr-lite", *words] if words else ["python", sys.argv[0]]
    return ["accelerate", "launch", *(["-m", "dcr_lite.cli", *words] if words else [sys.argv[0]])]


def _several() -> bool:
    """Whether torchrun or accelerate launch has started several processes, of which this is one."""
    return "LOCAL_RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def _start(main: Callable[[AnySettings], None], settings: AnySettings) -> None:
    from dcr_lite.model.distributed import joined, on_main
    from dcr_lite.run.inputs import resolved

    if not _several():
        return main(resolved(settings))
    with joined(settings.device):
        return main(on_main(lambda: resolved(settings)))  # what has to be fetched is fetched once


def _say(message: str) -> None:
    """Print to standard error, once however many processes there are."""
    if not _several() or os.environ.get("RANK") == "0":
        print(message, file=sys.stderr)
