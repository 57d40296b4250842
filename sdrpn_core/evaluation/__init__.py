"""Ways of answering, compared: the same documents, images and clock for all of them."""
