"""``lmms-eval --model sdrpn``: the zoom pipeline as a model of an unmodified lmms-eval."""
