"""evenkeel keeps transformers on an even keel: it sees, chooses and builds their nonlinear parts."""
