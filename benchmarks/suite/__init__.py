"""What `pytest benchmarks/` measures: every operator at the shapes of real trainings, beside what people train with."""
