"""REST, OpenAI's API and a playground in front of Qwen3-TTS on Triton; stands on the client alone."""
