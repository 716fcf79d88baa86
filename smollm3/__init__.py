"""The command line: `smollm3 VERB`. It sees every package and is imported by none.

`command_line.VERBS` lists the verbs; each module beside it holds those of one part of the chain.
"""
