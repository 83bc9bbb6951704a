"""What files and fingerprints share: written whole or not at all, read strictly."""
