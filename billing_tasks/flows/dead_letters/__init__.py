"""Dead letters: recorded, selected, previewed, retried, resolved by a person."""
