"""evomerge: search for the best way to merge fine-tuned models."""
