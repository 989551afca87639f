"""What `meter-agent dead-letters` is made of: reading letters, sending them again, closing them."""
