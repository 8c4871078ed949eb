"""What can be known about a suspect file before anything in it is used."""
