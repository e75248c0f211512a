"""Per-sample gradients at the trained weights and around them, and the kernels made of them."""
