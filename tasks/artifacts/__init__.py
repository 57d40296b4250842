"""The artifact store: what a stage makes, addressed by its recipe and committed by its manifest."""
