"""The committed tiny base model: its tokenizer, its corpus and the script that rebuilds it."""
