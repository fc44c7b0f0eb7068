"""Many checkpoints to an order: what lies there, what is kept of it, and what it is worth."""
