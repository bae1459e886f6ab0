"""What both sides agree on: the run spec, the vector layout, slices, identities and the generated stubs."""

RELEASE = "0.1.0"
"""The release of Choral that this is."""
