"""What keeps updates private: secure aggregation, both halves of it, and who may take part."""
