"""Several Docker hosts on one Linux machine: what `scripts/lab-hosts` does, for tests and benches to import.

It stands on the standard library and on those modules of etcdops that need nothing else.
"""
