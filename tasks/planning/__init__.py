"""What a run will fetch, make and cost, before it starts."""
