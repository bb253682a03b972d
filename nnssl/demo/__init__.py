"""The whole chain on made CT phantoms: chain (what is done), run (doing it), result (what came
out).
"""
