"""What the frozen model attends to: kernels and their masks, read-out, sinks."""
