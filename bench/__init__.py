"""`make bench`: ratios taken in one run on one machine, written to `docs/benchmarks.md`.

Each row of the table is a file: `rows.py` lists them. A row gets the bench's own farm and returns
lines; what it compares, it measures in turn (A B A B), since a machine is never quite quiet.
"""
