"""Side-by-side benchmarks: each measures its sides in turn in one run, and names the machine."""
