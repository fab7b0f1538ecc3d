"""The demo in a browser, the same as `dcr-lite demo`: python app.py --run runs/NAME --port 7861 --share"""

import sys

from dcr_lite.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "demo")
    main()
