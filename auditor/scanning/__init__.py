"""The scan: every selected probe and search against one suspect, to counts, to a verdict."""
