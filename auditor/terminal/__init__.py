"""What a person sees in a terminal: progress on stderr, the result on stdout."""
