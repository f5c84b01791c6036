"""What is right and wrong with this machine, in plain words, with the command that mends it.

Facts are gathered once (`facts`), each check looks at them and reads nothing itself (`machine`, `driver`, `models`,
`service`), and `report` tells what they found.
"""
