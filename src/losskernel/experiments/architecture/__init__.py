"""The kernel of other networks on the images of experiment 2, and how far networks agree."""
