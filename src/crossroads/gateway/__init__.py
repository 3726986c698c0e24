"""The server: an OpenAI-compatible endpoint that routes each prompt and says why."""
