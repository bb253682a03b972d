"""The whole chain on synthetic CT: chain (what is done), stages (doing it), result (what came
out).
"""
