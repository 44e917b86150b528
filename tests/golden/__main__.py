"""``python -m tests.golden FILE.json ...``"""

import argparse
import os

from tests.golden.run import check_files

parser = argparse.ArgumentParser(
    prog="python -m tests.golden",
    description="Check nasjax against golden numbers. One line per case: relative errors, and ok, "
    "FAIL or info (for comparison only). Quantities in parentheses do not count. The exit status "
    "is 1 if a case fails or a file cannot be handled.",
)
# Most of the time is compilation: minutes for a step of NASViT.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
parser.add_argument("files", nargs="+", metavar="FILE.json")
raise SystemExit(check_files(parser.parse_args().files))
