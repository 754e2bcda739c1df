"""Models that ship with the package: small embedded ones, and MiniGPT-4 as a Hugging Face model."""
