"""From results/*.json to tables and pictures: no number enters the README or docs/benchmarks.md in another way."""
