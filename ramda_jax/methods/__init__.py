"""Methods: one file each, from gradients to the common subproblem."""
