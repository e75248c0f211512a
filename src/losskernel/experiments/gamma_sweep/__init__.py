"""The kernel along the localization gamma (appendix D.3)."""
