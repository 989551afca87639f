"""What `meter-agent send` is made of: one event, shown, sent, or checked at once."""
