"""What the frozen model attends to: read-out, extraction, sinks."""
