"""What `meter-agent dead-letters` is made of: reading letters, and sending them again."""
