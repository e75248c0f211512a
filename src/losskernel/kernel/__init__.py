"""The loss kernel: estimates, errors, neighbors, similarity of kernels, maps."""
