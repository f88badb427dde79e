"""Images -> ranges -> int8 networks that say where they came from and what they cost."""
