"""The views of the methods: random draws are separate from their effect."""
