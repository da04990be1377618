"""The verbs of the command line: each wires the other rooms; nothing imports them."""
