"""Attention maps of questions and answers, read out of the frozen model."""
