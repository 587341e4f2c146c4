"""What is timed, against what. `make bench` runs everything and writes docs/benchmarks.md."""
