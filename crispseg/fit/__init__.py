"""Training of refiners and small bases."""
