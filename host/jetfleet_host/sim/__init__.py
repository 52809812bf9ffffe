"""A fleet of virtual devices around the contract's own machines, and everything that can go wrong with it."""
