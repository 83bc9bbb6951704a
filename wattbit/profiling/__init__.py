"""What each layer of a model costs and tolerates at each precision, measured."""
