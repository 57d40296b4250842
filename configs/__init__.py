"""Run configurations that come with the package; ``load_config`` finds them by name."""
