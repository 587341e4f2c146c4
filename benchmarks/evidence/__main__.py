"""`python -m benchmarks.evidence [PART[:NAME] ...]`: computes what is missing of the grid, or of the cells
of a name in a part, and writes docs/evidence.md.
`python -m benchmarks.evidence same [COMMIT]`: whether cells of earlier code count for the present one.

It can be stopped at any time and goes on where it stopped. `PASER_BENCH_WORKERS` cells at a time (default:
one a core), each on one thread.
"""

import sys

from benchmarks.evidence import same
from benchmarks.evidence.run import main
from paser.errors import PaserError

if __name__ == "__main__":
    try:
        if sys.argv[1:2] == ["same"]:
            same.main(*sys.argv[2:3])
        else:
            main(sys.argv[1:])
    except PaserError as error:
        sys.exit(f"error: {error}")
