"""The whole chain on synthetic CT: chain (what is done), run (doing it), result (what came
out).
"""
