"""Training: the trainer's loop, the learners that improve the policy, and the evaluator."""
