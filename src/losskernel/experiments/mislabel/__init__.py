"""Wrong labels found by self-covariance (appendix D.4)."""
