"""What parts cost: generated tables."""
