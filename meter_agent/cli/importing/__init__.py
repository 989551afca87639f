"""What `meter-agent import` is made of.

`input_file` knows a file by its content, `row_source` reads its rows, `row_mapping` makes events of
them, `chunks` cuts them, `file_import` delivers chunk by chunk, and `journal` remembers how far it
came. What bills once, and why, stands in docs/howto/import-a-file.md.
"""
