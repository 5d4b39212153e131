"""`make bench`: ratios taken in one run on one machine, written to `docs/benchmarks.md`."""
