"""Text and tokens: prompts to ids, ids to text as they come. Knows no requests and no tensors of a model."""
