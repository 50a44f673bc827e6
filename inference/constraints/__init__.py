"""What an answer may not be: its forms and its bad words, token by token. Knows a vocabulary; no requests, no model."""
