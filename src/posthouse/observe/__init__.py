"""What the program tells: structured logs and metrics, and a small HTTP server to tell them. Imports nothing of ours."""
