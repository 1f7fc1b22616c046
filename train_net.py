#!/usr/bin/env python
"""mpn-train, from the repository: see mpn_d2/cli/train.py, or --help.

python train_net.py --config-file configs/MultiPoseNet/R_50.yaml --stage all OUTPUT_DIR out
python train_net.py --config-file configs/MultiPoseNet/R_50.yaml --eval-only OUTPUT_DIR out
"""

from mpn_d2.cli.train import run

if __name__ == "__main__":
    run()
