"""Models behind an OpenAI-compatible API: the frozen model, and an LLM judge as a reward."""
