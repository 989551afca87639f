"""The command line, `meter-agent`; see the reference page for commands and exit codes.

One module per command, listed in `app`. A command imports what it needs when it runs, so that
`meter-agent --help` needs no server and no display. Data goes to stdout, talk to stderr.
"""
