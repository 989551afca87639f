"""What `meter-agent status` is made of: one module for each thing that has a state."""
