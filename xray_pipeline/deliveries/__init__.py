"""What a delivery is made of and what became of each of its files."""
