"""What is measured, how, and the last results as tables (RESULTS.md)."""
