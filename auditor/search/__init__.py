"""Searches for triggers that nobody declared."""
