"""The built-in small world: generated scenes, and a tiny LLaVA that reads them."""
