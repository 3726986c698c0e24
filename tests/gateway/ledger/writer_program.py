"""A process that writes to a ledger: URL, name, number of rows, and what to do at the end.

Prints the moment of each appended row, so that whoever kills it knows what was due.
"""

from __future__ import annotations

import sys
import time

from crossroads.gateway.ledger import LedgerSettings, open_ledger
from tests.gateway.ledger.records import record

FLUSH_MS = 50


def main() -> None:
    url, name, count, at_end = sys.argv[1:]
    ledger = open_ledger(LedgerSettings(url=url, flush_ms=FLUSH_MS, batch=100))
    for n in range(int(count)):
        ledger.append(record(f"dec_{name}_{n}"))
        if at_end == "wait":
            sys.stdout.write(f"{n} {time.time()}\n")
            sys.stdout.flush()
            time.sleep(0.002)
    ledger.close()


if __name__ == "__main__":
    main()
