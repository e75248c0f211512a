"""Speed and memory against peers and floors, each measured in one run: ``make bench``."""
