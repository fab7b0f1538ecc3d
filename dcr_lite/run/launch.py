"""From the command line to a recipe's main function: flags, and mistakes said in a sentence."""

import errno
import logging
import os
import shlex
import sys
from collections.abc import Callable
from dataclasses import replace

import tyro

from dcr_lite.errors import UserError
from dcr_lite.model.unsloth import prepare
from dcr_lite.run.cards import show_cards
from dcr_lite.settings import Settings

MACHINE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)  # the disk's and its owner's, not ours


def launch(main: Callable[[Settings], None], defaults: Settings, argv: list[str] | None = None) -> None:
    """Run a recipe with the settings that the command line gives; exits with 1 for what a user can mend and with 130
    when interrupted. The recipe's own file and docstring head the help."""
    script = sys.modules["__main__"]
    settings = tyro.cli(
        Settings,
        default=defaults,
        args=argv,
        description=script.__doc__,
    )
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of a faster kernel that this kit never calls
    try:
        if settings.plan:
            from dcr_lite.run.inputs import resolved

            show_cards(resolved(replace(settings, data="shipped")))  # it needs no rows
        else:
            prepare(settings.backend, settings.device)
            _start(main, settings)
    except UserError as error:
        _say(f"\nerror: {error}")
        raise SystemExit(1) from None
    except OSError as error:
        if error.errno not in MACHINE_ERRORS:
            raise
        _say(f"\nerror: {error.filename or settings.run}: {error.strerror}. Then go on with --resume.")
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        start = ["accelerate", "launch"] if _several() else ["python"]
        again = shlex.join([*start, *sys.argv, *([] if settings.resume else ["--resume"])])
        _say(f"\nstopped. What is done is kept; go on with:\n  {again}")
        raise SystemExit(130) from None


def _several() -> bool:
    """Whether torchrun or accelerate launch has started several processes, of which this is one."""
    return "LOCAL_RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def _start(main: Callable[[Settings], None], settings: Settings) -> None:
    from dcr_lite.model.distributed import joined, on_main
    from dcr_lite.run.inputs import resolved

    if not _several():
        return main(resolved(settings))
    with joined(settings.device):
        return main(on_main(lambda: resolved(settings)))  # what has to be fetched is fetched once


def _say(message: str) -> None:
    """Once, however many processes there are."""
    if not _several() or os.environ.get("RANK") == "0":
        print(message, file=sys.stderr)
