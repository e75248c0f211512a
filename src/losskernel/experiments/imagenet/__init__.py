"""Inception-v1 on ImageNet against the WordNet hierarchy (section 4)."""
