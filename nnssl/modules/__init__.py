"""What at least two methods share: heads, decoders, losses, the teacher."""
