"""What inputs have in common, by WordNet, by color and by task, held against a kernel."""
