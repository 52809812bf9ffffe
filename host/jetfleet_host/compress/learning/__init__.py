"""The loop closes: what boards were not sure of, with a replay of what the model knew, becomes the next version, under two guards."""
