"""What the program tells: structured logs and metrics. Imports nothing of ours."""
