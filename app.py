"""The demo in a browser, the same as `dcr-lite demo`: python app.py --run runs/NAME --port 7861 --share"""

import sys

import tyro

from dcr_lite.demo.page import main
from dcr_lite.errors import UserError

if __name__ == "__main__":
    try:
        tyro.cli(main, config=(tyro.conf.FlagCreatePairsOff,))
    except UserError as error:
        sys.exit(f"error: {error}")
