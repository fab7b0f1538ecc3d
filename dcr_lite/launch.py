"""From the command line to a recipe's main function: flags, and mistakes said in a sentence."""

import errno
import logging
import shlex
import sys
from collections.abc import Callable
from dataclasses import replace

import tyro

from dcr_lite.errors import UserError
from dcr_lite.fit import show_cards
from dcr_lite.settings import Settings
from dcr_lite.unsloth_backend import prepare

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
            show_cards(replace(settings, data="shipped").chosen())  # it needs no rows
        else:
            prepare(settings.backend, settings.device)
            main(settings.chosen())
    except UserError as error:
        print(f"\nerror: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except OSError as error:
        if error.errno not in MACHINE_ERRORS:
            raise
        print(
            f"\nerror: {error.filename or settings.run}: {error.strerror}. Then go on with --resume.", file=sys.stderr
        )
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        again = shlex.join(["python", *sys.argv, *([] if settings.resume else ["--resume"])])
        print(f"\nstopped. What is done is kept; go on with:\n  {again}", file=sys.stderr)
        raise SystemExit(130) from None
