"""Models behind an OpenAI-compatible API: the frozen model, an LLM judge as a reward, and a rewriting proxy."""
