"""The loss kernel at the paper's number of inputs, 10,000."""
