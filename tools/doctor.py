#!/usr/bin/env python3
"""What this machine has of what mpn_d2 needs: see mpn_d2/doctor.py.

    python tools/doctor.py

Run as a file: importing the package would need what it looks for.
"""

import runpy
from pathlib import Path

if __name__ == "__main__":
    runpy.run_path(
        str(Path(__file__).resolve().parents[1] / "mpn_d2" / "doctor.py"), run_name="__main__"
    )
