"""What is broken on purpose, and how it is undone. One file a family of faults."""
