"""One run of one arm: what a worker calls, and the small Transformer trained on bytes that it runs by default."""
