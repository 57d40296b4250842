"""The two stages of answering with the zoom, and what decides between them."""
