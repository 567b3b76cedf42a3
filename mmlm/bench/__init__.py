"""Benchmarks that write Markdown tables: the cost of parts and losses, and whether each part learns."""
