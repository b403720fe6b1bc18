"""A script that runs tasks on workers of this machine, one of which dies: each line is a task and what it told."""

import sys

from tests.cohort import work

from histoflow.cohort import Pool, Where

if __name__ == "__main__":  # Dask starts Python anew, which imports this file
    with Pool(Where(cluster="local", n_workers=2)) as pool:
        calls = {str(n): {"number": n, "file": sys.argv[1] if n == 2 else ""} for n in range(4)}
        for outcome in pool.run(work.die_once_and_double, calls):
            sys.stdout.write(f"{outcome.name} {outcome.told}\n")
