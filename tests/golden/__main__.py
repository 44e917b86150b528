"""``python -m tests.golden FILE.json ...``"""

import argparse

from tests.golden.run import check_files
from tests.quick import compile_quickly

parser = argparse.ArgumentParser(
    prog="python -m tests.golden",
    description="Check nasjax against golden numbers. One line per case: relative errors, and ok, "
    "FAIL or info (for comparison only). Quantities in parentheses do not count. The exit status "
    "is 1 if a case fails or a file cannot be handled.",
)
compile_quickly()
parser.add_argument("files", nargs="+", metavar="FILE.json")
raise SystemExit(check_files(parser.parse_args().files))
