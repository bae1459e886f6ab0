"""The masked part of a round: sessions of secure aggregation over its clients."""
