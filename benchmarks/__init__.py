"""What was measured, as data: experiments/<name>.json -> results/<name>.json, by ``python -m benchmarks.run``."""
