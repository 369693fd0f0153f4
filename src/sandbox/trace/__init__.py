"""What a trace consists of: spans as they were recorded, and their ways to JSON, text and pictures."""
