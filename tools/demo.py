#!/usr/bin/env python
"""mpn-demo, from the repository: see mpn_d2/cli/demo.py, or --help.

python tools/demo.py --config-file configs/quick/demo.yaml --input photos/ --output drawn \
    --opts MODEL.WEIGHTS output/demo/model_final.pth
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mpn_d2.cli.demo import main, parse_args, run

__all__ = ["main", "parse_args", "run"]

if __name__ == "__main__":
    run()
