"""The broker: names of tasks, the only publisher, how messages are decoded, and what a worker must survive."""
