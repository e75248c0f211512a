"""The kernel along training (appendix D.5)."""
