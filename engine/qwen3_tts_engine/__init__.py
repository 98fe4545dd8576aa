"""The speech engine behind the Triton models: one thread, one running batch, one 80 ms frame at a time."""
