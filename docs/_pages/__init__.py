"""The pages that are facts of the code, a module each."""
