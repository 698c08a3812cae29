"""What targets give: identification, settling, and accuracy against FLOPs beside pruning."""
