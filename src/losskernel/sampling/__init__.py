"""Sampling the probe distribution: independent draws and chains, into a loss trace."""
