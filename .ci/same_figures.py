"""Two runs of the demo ended with the same figures: `python .ci/same_figures.py ONE OTHER` compares them exactly."""

import sys
from pathlib import Path

import pandas as pd


def main() -> None:
    first, second = (pd.read_parquet(Path(folder) / "results.parquet") for folder in sys.argv[1:])
    pd.testing.assert_frame_equal(first, second, check_exact=True)
    print(f"the {len(first)} rows of {sys.argv[1]} and {sys.argv[2]} are equal")


if __name__ == "__main__":
    main()
