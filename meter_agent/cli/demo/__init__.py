"""What `meter-agent demo` is made of: trace, server, faults, replay, books and display."""
