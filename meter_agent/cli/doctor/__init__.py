"""What `meter-agent doctor` is made of: one module for each kind of thing that is looked at."""
