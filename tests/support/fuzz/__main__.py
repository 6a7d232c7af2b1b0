"""python -m support.fuzz --work=DIR [--cases=N] [--seed=N] [--jobs=N] [--reader=NAME ...] [--case=NAME:SEED:NUMBER]"""

import argparse
import json
import sys
from pathlib import Path

from support.fuzz import driver
from support.fuzz.readers import READERS


def main() -> int:
    """The command line; status 1 where a case failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--cases", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--reader", action="append", choices=sorted(READERS))
    parser.add_argument("--case", help="NAME:SEED:NUMBER, run anew")
    args = parser.parse_args()
    if args.case:
        name, number, n = args.case.split(":")
        found = driver.again(args.work, name, int(number), int(n))
        print(json.dumps(found, indent=1))
        return int(found["outcome"] == "failed")
    print(f"seed {args.seed}", flush=True)
    found = driver.run(args.work, args.cases, args.seed, args.reader, args.jobs)
    for name, counts in found["readers"].items():
        print(f"{name:18} {'  '.join(f'{outcome} {count}' for outcome, count in sorted(counts.items()))}")
    print(json.dumps({k: v for k, v in found.items() if k != "readers"}))
    return int(bool(found["failed"]))


if __name__ == "__main__":
    sys.exit(main())
