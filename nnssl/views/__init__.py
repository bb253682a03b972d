"""What a method looks at: draws apart from their effect."""
