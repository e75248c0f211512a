"""What the control variate gains."""
