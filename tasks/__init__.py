"""One file per stage: read artifacts, call core, commit an artifact."""
