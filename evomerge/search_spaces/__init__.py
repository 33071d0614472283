"""What a genome means."""
