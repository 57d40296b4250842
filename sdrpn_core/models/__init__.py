"""Stock multimodal LLMs behind one protocol: loading, profiles and one adapter per family."""
