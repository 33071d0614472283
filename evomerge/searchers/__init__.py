"""Who proposes genomes."""
