"""What the evaluations compute from features, logits and labels."""
