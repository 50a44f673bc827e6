"""Models in lean torch: token ids and a KV cache in, logits out. They know no requests, no adapter files, no text."""
