"""The region proposal network: its layers, loss, threshold and checkpoint."""
