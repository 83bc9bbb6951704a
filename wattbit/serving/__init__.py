"""What a serving process loads and runs: bundle, controller, runtime, monitors."""
