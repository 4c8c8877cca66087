"""Fair ablations: arms matched in size, tuned alike, paired by seed, judged by stated statistics."""
