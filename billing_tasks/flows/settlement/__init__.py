"""Settlement: outboxes are booked, and workers are rung for them."""
