"""Plans in eager torch: layers that change precision between batches, and the way back."""
