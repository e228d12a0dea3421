"""Proof on a GPU as one command, ``python -m benchmarks.gpu``: build, tests, sanitizer, benchmarks, training."""
