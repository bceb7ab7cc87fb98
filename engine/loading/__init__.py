"""Model names become files; files become weights, configuration and a tokenizer."""
