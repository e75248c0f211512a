"""Modular addition and division, told apart by the loss kernel (section 3 of the paper)."""
