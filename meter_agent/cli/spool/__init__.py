"""What `meter-agent spool` is made of: looking at segments, and delivering those of the dead."""
