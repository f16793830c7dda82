"""dagger-nb: DAgger for long-horizon LLM agents, notebook first (arXiv 2605.12913)."""

__version__ = "0.1.0"
