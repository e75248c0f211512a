"""What a user calls from the command line."""
